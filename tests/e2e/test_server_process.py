"""The server as a process: quick to start, without torch, refusing what does not fit, stopping in order."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cognate import Client
from cognate.v1 import embedding_pb2, embedding_pb2_grpc, search_pb2, search_pb2_grpc
from tests.conftest import SAMPLE
from tests.e2e.conftest import COGNATE, run, serving


def answered(*arguments: object) -> Any:
    """What a command prints as JSON."""
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_encode_and_search_from_another_terminal(minilm_bundle: Path, sample_index: Path) -> None:
    with serving("--bundle", minilm_bundle, "--index", sample_index) as (server, target):
        assert run("health", "--target", target).returncode == 0
        first = json.loads((SAMPLE / "index.jsonl").read_text().splitlines()[0])
        hits = answered("search", first["text"], "--target", target, "--top-k", 3, "--json")
        assert next(hit["id"] for hit in hits) == "0"
        assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
        assert hits[0]["label"] == first["label"]
        table = run("search", first["text"], "--target", target, "--top-k", 3)
        assert first["text"] in table.stdout
        encoded = answered("encode", "a", "b", "--target", target, "--json")
        assert np.linalg.norm(encoded["embeddings"], axis=1) == pytest.approx([1, 1], abs=1e-5)
        many = run("search", "x", "--target", target, "--top-k", 900)
        assert "fewer than the 900 asked for" in many.stderr
        few = ("--filter", f'label = "{first["label"]}"', "--group-by-label", "--offset", 0, "--json")
        (alone,) = answered("search", first["text"], "--target", target, *few)
        assert alone["id"] == "0"
        like = ("--like", 0, "--exclude-id", 1, "--exclude-id", 2, "--top-k", 900, "--json")
        others = answered("search", "--target", target, *like)
        assert not {"0", "1", "2"} & {hit["id"] for hit in others}
        assert run("health", "--target", target).returncode == 0
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0


def test_bad_requests_are_one_line_on_the_command_line(minilm_bundle: Path, sample_index: Path) -> None:
    with serving("--bundle", minilm_bundle, "--index", sample_index) as (_, target):
        for arguments, message in (
            (("search", ""), "queries[0]"),
            (("search", "x", "--index", "nothing"), "nothing"),
            (("search", "x", "--top-k", "100000"), "top_k"),
            (("search", "x", "--top-k", "1000", "--offset", "1"), "offset"),
            (("search", "x", "--filter", "label ="), "the filter needs a string"),
            (("search", "--like", "no such id"), "no record with the id 'no such id'"),
        ):
            finished = run(*arguments, "--target", target)
            assert finished.returncode == 1
            assert finished.stdout == ""
            (line,) = finished.stderr.splitlines()
            assert line.startswith("error: ")
            assert message in line


def test_a_client_of_the_contract_alone_can_search(minilm_bundle: Path, sample_index: Path) -> None:
    request = search_pb2.SearchRequest(queries=[search_pb2.Query(text="bounce the heron")], top_k=2)
    with (
        serving("--bundle", minilm_bundle, "--index", sample_index) as (_, target),
        grpc.insecure_channel(target) as channel,
    ):
        answer = search_pb2_grpc.SearchServiceStub(channel).Search(request, timeout=30)
    assert len(answer.results[0].hits) == 2
    assert answer.results[0].hits[0].score >= answer.results[0].hits[1].score


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_with_exit_code_0(
    stop: signal.Signals, minilm_bundle: Path, sample_index: Path
) -> None:
    with serving("--bundle", minilm_bundle, "--index", sample_index) as (server, _):
        server.send_signal(stop)
        assert server.wait(timeout=60) == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_server_at_once_that_waits_for_a_call(
    stop: signal.Signals, minilm_bundle: Path
) -> None:
    # Half a minute of work.
    long = embedding_pb2.EncodeRequest(texts=[f"{n} {'language ' * 300}" for n in range(1000)])
    with (
        serving("--bundle", minilm_bundle, "--max-texts", 1000) as (server, target),
        grpc.insecure_channel(target) as channel,
    ):
        call = embedding_pb2_grpc.EmbeddingServiceStub(channel).Encode.future(long)
        time.sleep(0.5)
        assert not call.done()
        server.send_signal(stop)
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(timeout=1)
        server.send_signal(stop)
        assert server.wait(timeout=5) == -stop
        assert call.code() == grpc.StatusCode.UNAVAILABLE


def test_a_hangup_while_it_loads_does_not_end_it(minilm_bundle: Path, sample_index: Path) -> None:
    command = [*COGNATE, "serve", "--bundle", minilm_bundle, "--index", sample_index, "--port", "0"]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        # The indexes are next.
        assert "the model runs on" in next(server.stderr)
        server.send_signal(signal.SIGHUP)
        assert any("serving on" in line for line in server.stderr)
        server.terminate()
        assert server.wait(timeout=60) == 0


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Hit at the first of the libraries, which take the most of the start.
    (tmp_path / "typer.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    finished = run("serve")
    assert finished.returncode == -signal.SIGINT
    assert finished.stderr == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_the_address_of_the_metrics_can_be_opened_as_it_is_told(tiny_bundle: Path, workers: int) -> None:
    metrics = ("--metrics-host", "::1", "--metrics-port", 0)
    with serving("--bundle", tiny_bundle, "--workers", workers, *metrics) as (server, _):
        assert server.stderr
        told = re.search(r"metrics on (http://\[::1\]:\d+/metrics)", next(server.stderr))
        assert told
        with urllib.request.urlopen(told[1], timeout=60) as answer:
            assert b"cognate_" in answer.read()


def test_a_port_in_use_is_one_line(minilm_bundle: Path, sample_index: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = run("serve", "--bundle", minilm_bundle, "--index", sample_index, "--port", port)
    assert finished.returncode == 1
    assert f"{port}" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_an_index_of_another_model_is_refused(tiny_bundle: Path, sample_index: Path) -> None:
    finished = run("serve", "--bundle", tiny_bundle, "--index", sample_index, "--port", 0)
    assert finished.returncode == 1
    assert "was built with another bundle" in finished.stderr.splitlines()[-1]


def test_a_damaged_bundle_is_refused(minilm_bundle: Path, sample_index: Path, tmp_path: Path) -> None:
    shutil.copytree(minilm_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle/tokenizer.json").open("r+b") as file:
        file.truncate(1000)
    finished = run("serve", "--bundle", tmp_path / "bundle", "--index", sample_index, "--port", 0)
    assert finished.returncode == 1
    assert "tokenizer.json has 1000 bytes where the manifest says" in finished.stderr.splitlines()[-1]


def test_print_config_shows_what_holds(minilm_bundle: Path, sample_index: Path) -> None:
    finished = run("serve", "--bundle", minilm_bundle, "--index", sample_index, "--print-config")
    assert finished.returncode == 0
    assert str(minilm_bundle) in finished.stdout
    assert "50051" in finished.stdout


def test_serving_loads_no_training_library(minilm_bundle: Path, sample_index: Path) -> None:
    program = (
        "import sys, cognate.cli, serving, indexer, cognate.index, cognate.encoder\n"
        "print(sorted({'torch', 'transformers', 'optimum', 'sentence_transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_ctrl_c_in_a_batch_job_leaves_nothing(minilm_bundle: Path, tmp_path: Path) -> None:
    # Records that never end, so that the job is running when the signal comes.
    command = [
        *COGNATE,
        "index",
        "build",
        "-",
        "--bundle",
        str(minilm_bundle),
        "--out",
        str(tmp_path / "index"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdin is not None
        # More than a pipe holds: once it is written, the job reads.
        job.stdin.write(b'{"text": "how do i open the door"}\n' * 10_000)
        job.stdin.flush()
        job.send_signal(signal.SIGINT)
        _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_client_waits_for_a_server_that_starts(minilm_bundle: Path, sample_index: Path) -> None:
    with (
        serving("--bundle", minilm_bundle, "--index", f"sample={sample_index}") as (_, target),
        Client(target) as client,
    ):
        client.wait_until_ready()
        assert [index.name for index in client.list_indexes()] == ["sample"]
        info = client.info()
    assert info.model.dimension == 384
