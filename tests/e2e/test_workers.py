"""Several workers on one port, as processes: a dead one is replaced, calls go on, all stop together."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cognate import Client
from cognate.client import RequestError
from tests.e2e.conftest import COGNATE, run, serving
from tests.serving.test_access import write_keys

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def workers_of(server: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


@contextlib.contextmanager
def watching(target: str) -> Iterator[Iterator[int]]:
    """What health says of the workers, as it changes; asked of another worker where the asked one dies."""

    def statuses() -> Iterator[int]:
        request = health_pb2.HealthCheckRequest(service="cognate.workers")
        while True:
            with (
                contextlib.suppress(grpc.RpcError),
                grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
            ):
                for answer in health_pb2_grpc.HealthStub(channel).Watch(
                    request, timeout=60, wait_for_ready=True
                ):
                    yield answer.status

    yield statuses()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Path:
    return tiny_bundle


def test_a_worker_killed_under_load_is_replaced_and_every_call_is_answered(bundle: Path) -> None:
    with serving("--bundle", bundle, "--workers", 2) as (server, target), watching(target) as health:
        before = workers_of(server)
        assert len(before) == 2
        assert next(status for status in health if status == SERVING)
        enough = threading.Event()
        failures: list[BaseException] = []
        answered = [0] * 4

        def load(number: int) -> None:
            while not enough.is_set():
                # A connection of its own each time, to either worker.
                try:
                    with Client(target, timeout=60) as client:
                        for _ in range(5):
                            client.encode([f"door {number}"])
                            answered[number] += 1
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=load, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        # Both in turn, so that whichever has the load is hit.
        for worker in before:
            worker.kill()
            assert next(status for status in health if status == NOT_SERVING)
            assert next(status for status in health if status == SERVING)
        enough.set()
        for thread in threads:
            thread.join(120)
        assert not failures
        assert all(answered)
        after = workers_of(server)
        assert len(after) == 2
        assert not {worker.pid for worker in before} & {worker.pid for worker in after}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_with_exit_code_0(bundle: Path, stop: signal.Signals) -> None:
    with serving("--bundle", bundle, "--workers", 2) as (server, _):
        workers = workers_of(server)
        server.send_signal(stop)
        assert server.wait(timeout=60) == 0
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2
    assert not alive


def test_workers_do_not_outlive_a_parent_that_is_killed(bundle: Path) -> None:
    with serving("--bundle", bundle, "--workers", 2) as (server, _):
        workers = workers_of(server)
        server.kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive


def test_a_port_in_use_is_one_line_whoever_uses_it(bundle: Path) -> None:
    with serving("--bundle", bundle, "--workers", 2) as (_, target):
        port = target.rpartition(":")[2]
        for workers in (1, 2):
            finished = run("serve", "--bundle", bundle, "--port", port, "--workers", workers)
            assert finished.returncode == 1
            assert f"port {port} on 127.0.0.1 is in use" in finished.stderr.splitlines()[-1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = run("serve", "--bundle", bundle, "--port", port, "--workers", 2)
    assert finished.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use" in finished.stderr.splitlines()[-1]


def test_what_is_wrong_with_the_settings_is_said_once(tmp_path: Path) -> None:
    finished = run("serve", "--bundle", tmp_path / "none", "--port", 0, "--workers", 2)
    assert finished.returncode == 1
    assert sum(line.startswith("error: ") for line in finished.stderr.splitlines()) == 1
    assert "none" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_a_worker_that_always_dies_at_its_start_is_given_up(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only in the workers, whose program this is.
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif '-c' in sys.orig_argv:\n    os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    finished = run("serve", "--bundle", bundle, "--port", 0, "--workers", 2)
    assert finished.returncode == 1
    assert re.search(
        r"worker [12] ended at its start 5 times in a row, last with exit code 9", finished.stderr
    )
    assert "Traceback" not in finished.stderr


def test_a_hangup_reloads_the_keys_of_every_worker(bundle: Path, tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.toml", {"old": {"rights": {"encode"}}})
    with serving("--bundle", bundle, "--workers", 2, "--keys", keys) as (server, target):
        with Client(target, api_key="old") as client:
            client.encode(["door"])
        write_keys(keys, {"new": {"rights": {"encode"}}})
        server.send_signal(signal.SIGHUP)
        # Until both know it: each has its own connections.
        for _ in range(6):
            while True:
                try:
                    with Client(target, api_key="new") as client:
                        client.encode(["door"])
                    break
                except RequestError as error:
                    if error.reason != "BAD_KEY":
                        raise
        assert server.poll() is None


def test_a_server_open_to_the_network_without_tls_and_keys_warns_in_one_line(bundle: Path) -> None:
    with subprocess.Popen(
        [*COGNATE, "serve", "--bundle", str(bundle), "--host", "0.0.0.0", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr
        lines = []
        for line in server.stderr:
            lines.append(line)
            if "serving on" in line:
                break
        server.terminate()
        assert server.wait(60) == 0
    (warning,) = [line for line in lines if "warning" in line]
    assert "on 0.0.0.0 without TLS and without keys, whoever reaches the port may call" in warning
