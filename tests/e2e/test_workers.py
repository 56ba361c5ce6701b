"""Several workers on one port, as processes: a dead one is replaced, calls go on, all stop together."""

import contextlib
import os
import random
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
from cognate.encoder import Encoder
from cognate.v1 import index_pb2, info_pb2, search_pb2
from tests.e2e.conftest import COGNATE, run, serving
from tests.serving.servers import Stubs, eventually, failure, version_records, write_index
from tests.serving.test_access import write_keys

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def workers_of(server: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


def kill(worker: psutil.Process, connections: list[Stubs]) -> None:
    """Kill a worker, and see health tell of it, and then of the new one.

    All workers are asked: what the killed one would tell is lost, and who asked it alone could ask again only
    once all is well.
    """
    request = health_pb2.HealthCheckRequest(service="cognate.workers")
    watches = [health_pb2_grpc.HealthStub(stubs.channel).Watch(request, timeout=60) for stubs in connections]
    assert {next(watch).status for watch in watches} == {SERVING}
    worker.kill()
    told = 0
    for watch in watches:
        # Those of the killed worker end with it.
        with contextlib.suppress(grpc.RpcError):
            assert [next(watch).status, next(watch).status] == [NOT_SERVING, SERVING]
            told += 1
    assert told


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Path:
    return tiny_bundle


def test_a_worker_killed_under_load_is_replaced_and_every_call_is_answered(bundle: Path) -> None:
    with serving("--bundle", bundle, "--workers", 2) as (server, target):
        before = workers_of(server)
        assert len(before) == 2
        failures: list[BaseException] = []
        answered = [0] * 4

        def load(number: int, enough: threading.Event) -> None:
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

        # Both in turn, so that whichever has the load is hit.
        for worker in before:
            # Before the load, whose connections would be taken for these.
            with connected_to_all(server, target) as connections:
                enough = threading.Event()
                threads = [threading.Thread(target=load, args=[number, enough]) for number in range(4)]
                for thread in threads:
                    thread.start()
                kill(worker, connections)
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


def test_what_a_library_prints_in_a_worker_harms_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = "import sys\nif '-c' in sys.orig_argv: print('Loading …', 7, sep='\\n', flush=True)\n"
    (tmp_path / "sitecustomize.py").write_text(prints)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with serving("--bundle", bundle, "--workers", 2) as (_, target), Client(target) as client:
        client.encode(["door"])


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


@pytest.fixture
def versions(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Three versions of an index, whose records' ids say which they are of; v4 is damaged."""
    encoder = Encoder(tiny_bundle)
    for name in ("v1", "v2", "v3", "v4"):
        write_index(tmp_path / "versions" / name, encoder, version_records(name))
    with (tmp_path / "versions/v4/index.faiss").open("r+b") as file:
        file.seek(50)
        file.write(b"\xff\xff\xff\xff")
    return tmp_path / "versions"


@contextlib.contextmanager
def connected_to_all(server: subprocess.Popen[str], target: str) -> Iterator[list[Stubs]]:
    """Connections to every worker, while nothing else connects."""

    def callers(worker: psutil.Process) -> set[int]:
        return {each.raddr.port for each in worker.net_connections("tcp") if each.raddr}

    # Closed ones, which a worker may not have seen end yet.
    others = set().union(*map(callers, workers_of(server)))
    with contextlib.ExitStack() as stack:
        connections: list[Stubs] = []
        while not connections or not all(callers(worker) - others for worker in workers_of(server)):
            channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
            connections.append(Stubs(stack.enter_context(channel)))
            connections[-1].get_info(info_pb2.GetInfoRequest(), timeout=60, wait_for_ready=True)
        yield connections


def one_that_answers(connections: list[Stubs]) -> Stubs:
    """A connection to a worker that is not suspended."""
    asked = None
    while asked is None:
        for stubs in connections:
            with contextlib.suppress(grpc.RpcError):
                stubs.get_info(info_pb2.GetInfoRequest(), timeout=1)
                asked = stubs
    return asked


def served_by(stubs: Stubs, name: str = "default") -> str:
    """The version that answers, which the ids of all hits must be of."""
    request = search_pb2.SearchRequest(index=name, queries=[search_pb2.Query(text="door")], top_k=3)
    (result,) = stubs.search(request, timeout=60).results
    (version,) = {hit.id.partition("/")[0] for hit in result.hits}
    return str(version)


def change(stubs: Stubs, path: Path, name: str = "default") -> None:
    stubs.load_index(index_pb2.LoadIndexRequest(name=name, path=str(path)), timeout=60)


def test_all_workers_switch_together_under_load_and_back(bundle: Path, versions: Path) -> None:
    arguments = ("--bundle", bundle, "--index", versions / "v1", "--index-root", versions, "--admin")
    with (
        serving(*arguments, "--workers", 2) as (server, target),
        connected_to_all(server, target) as connections,
    ):
        enough = threading.Event()
        failures: list[BaseException] = []

        def load(stubs: Stubs) -> None:
            try:
                while not enough.is_set():
                    served_by(stubs)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=load, args=[stubs]) for stubs in connections]
        for thread in threads:
            thread.start()
        for asked in (connections[0], connections[-1]):
            change(asked, versions / "v2")
            assert {served_by(stubs) for stubs in connections} == {"v2"}
            asked.rollback_index(index_pb2.RollbackIndexRequest(name="default"), timeout=60)
            assert {served_by(stubs) for stubs in connections} == {"v1"}
        enough.set()
        for thread in threads:
            thread.join(120)
        assert not failures
        connections[0].unload_index(index_pb2.UnloadIndexRequest(name="default"), timeout=60)
        for stubs in connections:
            assert not stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60).indexes


def test_what_a_worker_refuses_none_serves(bundle: Path, versions: Path) -> None:
    arguments = ("--bundle", bundle, "--index", versions / "v1", "--index-root", versions, "--admin")
    with (
        serving(*arguments, "--workers", 2) as (server, target),
        connected_to_all(server, target) as connections,
    ):
        request = index_pb2.LoadIndexRequest(name="default", path=str(versions / "v4"))
        refused = failure(connections[0].load_index, request)
        assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
        assert refused.reason == "BAD_INDEX"
        assert "index.faiss was altered" in refused.message
        rollback = index_pb2.RollbackIndexRequest(name="default")
        assert failure(connections[0].rollback_index, rollback).reason == "NO_PREVIOUS_VERSION"
        unknown = index_pb2.UnloadIndexRequest(name="nothing")
        assert failure(connections[0].unload_index, unknown).reason == "NO_SUCH_INDEX"
        assert {served_by(stubs) for stubs in connections} == {"v1"}
        # And the next is taken.
        change(connections[0], versions / "v2")
        assert {served_by(stubs) for stubs in connections} == {"v2"}


def test_a_worker_that_is_started_again_has_what_the_others_switched_to(bundle: Path, versions: Path) -> None:
    arguments = ("--bundle", bundle, "--index", versions / "v1", "--index-root", versions, "--admin")
    with serving(*arguments, "--workers", 2) as (server, target):
        with connected_to_all(server, target) as connections:
            change(connections[0], versions / "v2")
        with connected_to_all(server, target) as connections:
            kill(workers_of(server)[0], connections)
        with connected_to_all(server, target) as connections:
            change(connections[0], versions / "v3", "another")
        with connected_to_all(server, target) as connections:
            assert {served_by(stubs) for stubs in connections} == {"v2"}
            assert {served_by(stubs, "another") for stubs in connections} == {"v3"}
            rollback = index_pb2.RollbackIndexRequest(name="default")
            connections[-1].rollback_index(rollback, timeout=60)
            assert {served_by(stubs) for stubs in connections} == {"v1"}


def test_a_worker_that_dies_over_a_change_is_replaced_and_the_change_is_made(
    bundle: Path, versions: Path
) -> None:
    arguments = ("--bundle", bundle, "--index", versions / "v1", "--index-root", versions, "--admin")
    with serving(*arguments, "--workers", 2) as (server, target):
        first, second = workers_of(server)
        with connected_to_all(server, target) as connections:
            second.suspend()
            asked = one_that_answers(connections)
            request = index_pb2.LoadIndexRequest(name="default", path=str(versions / "v2"))
            under_way = asked.load_index.future(request, timeout=60)
            # The first has it open, and waits for the second.
            eventually(lambda: any("v2" in file.path for file in first.open_files()))
            assert not under_way.done()
            assert served_by(asked) == "v1"
            second.kill()
            assert under_way.result().index.version
        with connected_to_all(server, target) as connections:
            assert {served_by(stubs) for stubs in connections} == {"v2"}


def test_what_is_published_in_a_watched_folder_all_workers_switch_to(
    bundle: Path, versions: Path, tmp_path: Path
) -> None:
    (tmp_path / "watched/faq").mkdir(parents=True)
    (versions / "v1").rename(tmp_path / "watched/faq/v1")
    arguments = ("--bundle", bundle, "--watch", tmp_path / "watched", "--watch-seconds", 0.05, "--admin")
    with (
        serving(*arguments, "--workers", 2) as (server, target),
        connected_to_all(server, target) as connections,
    ):
        assert {served_by(stubs, "faq") for stubs in connections} == {"v1"}
        (versions / "v4").rename(tmp_path / "watched/faq/v4")
        (versions / "v2").rename(tmp_path / "watched/faq/v5")
        eventually(lambda: {served_by(stubs, "faq") for stubs in connections} == {"v2"})
        # What was rolled back stays so, in all.
        connections[0].rollback_index(index_pb2.RollbackIndexRequest(name="faq"), timeout=60)
        assert {served_by(stubs, "faq") for stubs in connections} == {"v1"}
        (versions / "v3").rename(tmp_path / "watched/faq/v6")
        eventually(lambda: {served_by(stubs, "faq") for stubs in connections} == {"v3"})


def test_an_index_that_was_built_again_in_its_place_is_loaded_by_all_or_none(
    bundle: Path, versions: Path
) -> None:
    with serving("--bundle", bundle, "--index", versions / "v1", "--workers", 2) as (server, target):
        with connected_to_all(server, target) as connections:
            (versions / "v1").rename(versions / "old")
            (versions / "v2").rename(versions / "v1")
            assert {served_by(stubs) for stubs in connections} == {"v1"}
            server.send_signal(signal.SIGHUP)
            eventually(lambda: {served_by(stubs) for stubs in connections} == {"v2"})
        (versions / "v1").rename(versions / "older")
        (versions / "v3").rename(versions / "v1")
        # Another that is started in its place finds the newer one.
        killed = workers_of(server)[0]
        killed.kill()
        eventually(lambda: len(workers_of(server)) == 2 and killed not in workers_of(server))
        with connected_to_all(server, target) as connections:
            eventually(lambda: {served_by(stubs) for stubs in connections} == {"v3"})


def test_an_index_that_is_unloaded_while_all_are_loaded_again_stays_so(bundle: Path, versions: Path) -> None:
    link = versions / "current"
    link.symlink_to("v1")
    indexes = ("--index", f"a={link}", "--index", f"b={versions / 'v3'}", "--index-root", versions)
    with serving("--bundle", bundle, *indexes, "--admin", "--workers", 2) as (server, target):
        first, second = workers_of(server)
        with connected_to_all(server, target) as connections:
            second.suspend()
            asked = one_that_answers(connections)
            link.unlink()
            link.symlink_to("v2")
            server.send_signal(signal.SIGHUP)
            # "a" is being loaded, and "b" is next.
            eventually(lambda: any("v2" in file.path for file in first.open_files()))
            unloading = asked.unload_index.future(index_pb2.UnloadIndexRequest(name="b"), timeout=60)
            asked.get_info(info_pb2.GetInfoRequest(), timeout=60)
            second.resume()
            unloading.result()
            # Changes are made one after another: by then, all were loaded again.
            change(asked, versions / "v1", "a")
            for stubs in connections:
                listed = stubs.list_indexes(index_pb2.ListIndexesRequest(), timeout=60)
                assert [each.name for each in listed.indexes] == ["a"]


def port_that_no_other_is_given() -> int:
    """A free port, of those that the system gives to nobody who asks for any, as the server then does."""
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    while True:
        port = random.randrange(10_000, int(lowest))
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("127.0.0.1", port))
            return port


def test_administration_has_a_port_of_its_own_with_several_workers_too(bundle: Path, versions: Path) -> None:
    arguments = ("--bundle", bundle, "--index", versions / "v1", "--index-root", versions)
    port = port_that_no_other_is_given()
    with (
        serving(*arguments, "--workers", 2, "--admin-port", port) as (server, target),
        connected_to_all(server, target) as connections,
        grpc.insecure_channel(f"localhost:{port}") as channel,
    ):
        request = index_pb2.LoadIndexRequest(name="default", path=str(versions / "v2"))
        assert failure(connections[0].load_index, request).reason == "NOT_PERMITTED"
        change(Stubs(channel), versions / "v2")
        assert {served_by(stubs) for stubs in connections} == {"v2"}
