"""A server with TLS and keys as a user starts it: the clients, the command line, and SIGHUP."""

import asyncio
import json
import signal
import time
from pathlib import Path

import pytest

from cognate import AsyncClient
from cognate.client import RequestError
from tests.certificates import Authority
from tests.e2e.conftest import run, serving
from tests.serving.test_access import write_keys


async def encode(target: str, **options: object) -> int:
    async with AsyncClient(target, **options) as client:
        return len((await client.encode(["door"])).vectors)


def test_tls_and_keys_from_the_command_line_and_a_reload(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("server")
    keys = write_keys(tmp_path / "keys.toml", {"old": {"rights": {"encode"}}})
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    with serving("--bundle", tiny_bundle, *tls, "--keys", keys) as (server, target):
        ask = ("encode", "door", "--json", "--target", target, "--tls-ca", authority.file)
        refused = run(*ask)
        assert refused.returncode == 1
        assert "this server needs a key" in refused.stderr
        monkeypatch.setenv("COGNATE_API_KEY", "old")
        assert len(json.loads(run(*ask).stdout)["embeddings"]) == 1
        monkeypatch.delenv("COGNATE_API_KEY")
        assert run("health", "--target", target, "--tls-ca", authority.file).returncode == 0
        assert asyncio.run(encode(target, ca=authority.file, api_key="old")) == 1
        write_keys(keys, {"new": {"rights": {"encode"}}})
        server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert asyncio.run(encode(target, ca=authority.file, api_key="new")) == 1
                break
            except RequestError as error:
                # The signal is on its way.
                if error.reason != "BAD_KEY" or time.monotonic() > deadline:
                    raise
        with pytest.raises(RequestError, match="this key is not known here"):
            asyncio.run(encode(target, ca=authority.file, api_key="old"))


def test_the_printed_settings_hold_paths_and_no_secret(tiny_bundle: Path, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").issue("server")
    keys = write_keys(tmp_path / "keys.toml", {"old": {"rights": {"encode"}}})
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    printed = run("serve", "--bundle", tiny_bundle, *tls, "--keys", keys, "--print-config").stdout
    assert json.loads(printed)["keys"] == str(keys)
    assert json.loads(printed)["tls_key"] == str(key)
    assert "sha256" not in printed
    assert "PRIVATE" not in printed


def test_keys_that_cannot_be_read_stop_the_start_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    finished = run("serve", "--bundle", tiny_bundle, "--port", 0, "--keys", tmp_path / "none.toml")
    assert finished.returncode == 1
    assert "none.toml cannot be read: No such file or directory" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr
