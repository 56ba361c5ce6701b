"""Settings from flags, the environment and a TOML file."""

import json
from pathlib import Path
from typing import Any

import pytest

from cognate.errors import CognateError
from serving import Settings, exposure, misspelt


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"COGNATE_{name.upper()}", raising=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cognate.toml"
    path.write_text('bundle = "from-file"\nport = 1\nmax_texts = 11\nhost = "::1"\n[indexes]\nfaq = "f"\n')
    return path


def test_without_a_word_it_serves_this_machine_only() -> None:
    settings = Settings.load(bundle="b")
    assert settings.host == "127.0.0.1"
    assert settings.port == 50051
    assert settings.indexes == {}


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COGNATE_PORT", "2")
    monkeypatch.setenv("COGNATE_MAX_TEXTS", "12")
    settings = Settings.load(config=config, port=3, max_texts=None, indexes=[])
    assert settings.port == 3
    assert settings.max_texts == 12
    assert settings.host == "::1"
    assert settings.bundle == Path("from-file")
    assert settings.indexes == {"faq": Path("f")}


def test_the_environment_can_name_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_CONFIG", str(config))
    assert Settings.load().bundle == Path("from-file")


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_PORT", "")
    assert Settings.load(bundle="b").port == 50051


@pytest.mark.parametrize(
    ("given", "indexes"),
    [
        (["i"], {"default": "i"}),
        (["a=i", "b=j"], {"a": "i", "b": "j"}),
        (["i", "b=j"], {"default": "i", "b": "j"}),
        (["./x=y/i"], {"default": "./x=y/i"}),
        (["a=/x=y"], {"a": "/x=y"}),
        ({"a": "i"}, {"a": "i"}),
    ],
)
def test_indexes_have_names(given: Any, indexes: dict[str, str]) -> None:
    assert Settings.load(bundle="b", indexes=given).indexes == {n: Path(p) for n, p in indexes.items()}


def test_indexes_of_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_INDEXES", "a=/i, b=/j")
    assert Settings.load(bundle="b").indexes == {"a": Path("/i"), "b": Path("/j")}


def test_flags_replace_the_indexes_of_the_file(config: Path) -> None:
    assert Settings.load(config=config, indexes=["a=i"]).indexes == {"a": Path("i")}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"bundle": None}, "no bundle was given; give --bundle, COGNATE_BUNDLE, or bundle in the TOML file"),
        ({"port": 65536}, "the setting port is 65536; it must be less than or equal to 65535"),
        ({"port": "x"}, "the setting port is 'x'; it must be a valid integer"),
        ({"device": "tpu"}, "the setting device is 'tpu'; it must be 'auto', 'cpu', 'cuda', 'tensorrt'"),
        ({"host": ""}, "the setting host is ''"),
        ({"threads": 0}, "the setting threads is 0; it must be greater than or equal to 1"),
        ({"max_texts": 0}, "the setting max_texts is 0"),
        ({"grace_seconds": -1}, "the setting grace_seconds is -1"),
        ({"tls_key": "k"}, "tls_certificate and tls_key go together; give both, or neither"),
        ({"tls_certificate": "c"}, "tls_certificate and tls_key go together"),
        ({"tls_client_ca": "c"}, "tls_client_ca needs tls_certificate and tls_key"),
        ({"port": 7, "admin_port": 7}, "port and admin_port are both 7; give each its own"),
        ({"port": 7, "metrics_port": 7}, "port and metrics_port are both 7; give each its own"),
        ({"admin_port": 7, "metrics_port": 7}, "admin_port and metrics_port are both 7; give each its own"),
        ({"workers": 0}, "the setting workers is 0"),
        ({"indexes": ["i", "j"]}, "two indexes are named 'default'; give each a name of its own"),
        ({"indexes": ["a="]}, "'a=' names no path; give [NAME=]PATH"),
        ({"indexes": ["=i"]}, "'' is no name for an index"),
        ({"indexes": ["a b=i"]}, "'a b' is no name for an index"),
        ({"indexes": {"a/b": "i"}}, "'a/b' is no name for an index"),
    ],
)
def test_a_wrong_setting_is_one_sentence(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CognateError) as caught:
        Settings.load(**{"bundle": "b", **flags})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"port = ", "cognate.toml is no TOML file"),
        (b"\xff\xfe", "cognate.toml is no TOML file"),
        (b"prot = 1", "there is no setting 'prot'; the settings are config, bundle, indexes"),
        (b"port = 'x'\nprot = 1", "there is no setting 'prot'"),
        (b"indexes = {a = 3}", "the setting indexes.a is wrong: 3 is no path; give that of an index"),
        (b"indexes = {a = true}", "the setting indexes.a is wrong: True is no path"),
        (b"[indexes]\na = ['idx']", "the setting indexes.a is wrong: ['idx'] is no path"),
        (b"indexes = [3]", "the setting indexes is wrong: 3 is no path"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "cognate.toml").write_bytes(content)
    with pytest.raises(CognateError) as caught:
        Settings.load(bundle="b", config=tmp_path / "cognate.toml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_free_ports_may_be_taken_for_all() -> None:
    settings = Settings.load(bundle="b", port=0, admin_port=0, metrics_port=0)
    assert settings.port == settings.admin_port == settings.metrics_port == 0


def test_a_worker_gets_all_settings_the_secret_one_too() -> None:
    settings = Settings.load(bundle="b", milvus_token="root:secret", workers=2, indexes=["a=milvus://m:1/x"])
    assert "secret" not in settings.model_dump_json()
    assert Settings.load(**json.loads(json.dumps(settings.said()))) == settings


def test_a_variable_like_a_setting_is_told_of_and_those_of_others_are_not() -> None:
    told = misspelt(["COGNATE_PROT", "COGNATE_PORT", "PATH"])
    assert told == "COGNATE_PROT is no setting, and is passed over; was COGNATE_PORT meant?"
    others = ["COGNATE_API_KEY", "COGNATE_TLS_CLIENT", "COGNATE_SERVICE_HOST", "COGNATE_PORT_50051_TCP_ADDR"]
    assert misspelt([*others, *(f"COGNATE_{name.upper()}" for name in Settings.model_fields)]) is None


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CognateError, match="No such file or directory; give a TOML file"):
        Settings.load(bundle="b", config=tmp_path / "none.toml")
    with pytest.raises(CognateError, match="Is a directory; give a TOML file"):
        Settings.load(bundle="b", config=tmp_path)


def test_roots_come_as_a_list_or_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(bundle="b", index_roots=[Path("a"), Path("b")]).index_roots == [Path("a"), Path("b")]
    monkeypatch.setenv("COGNATE_INDEX_ROOTS", "/a, /b")
    assert Settings.load(bundle="b").index_roots == [Path("/a"), Path("/b")]


def test_nobody_may_change_a_server_that_was_not_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load(bundle="b").admin is False
    monkeypatch.setenv("COGNATE_ADMIN", "true")
    assert Settings.load(bundle="b").admin is True


@pytest.mark.parametrize(
    ("settings", "danger"),
    [
        ({"host": "127.0.0.1"}, None),
        ({"host": "127.8.0.1"}, None),
        ({"host": "::1"}, None),
        ({"host": "localhost"}, None),
        ({"host": "0.0.0.0", "tls_certificate": "c", "tls_key": "k"}, None),
        ({"host": "0.0.0.0"}, "on 0.0.0.0 without TLS and without keys, whoever reaches the port may call"),
        ({"host": "::"}, "on :: without TLS and without keys"),
        ({"host": "localhost.example"}, "on localhost.example without TLS"),
        ({"host": "10.0.0.1", "keys": "k"}, "on 10.0.0.1 without TLS, keys and texts travel"),
    ],
)
def test_what_is_open_to_others_is_told(settings: dict[str, Any], danger: str | None) -> None:
    told = exposure(Settings.load(bundle="b", **settings))
    assert told is None if danger is None else told and danger in told
