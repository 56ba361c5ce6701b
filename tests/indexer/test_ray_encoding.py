"""A job on a Ray cluster: the index of the job of one machine, whatever dies meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

import indexer
from cognate.errors import CognateError, RecordError
from cognate.index import APPROXIMATE
from cognate.index_kinds import Layout
from indexer import Cluster
from indexer.batch_job import work_folder_of
from indexer.ray_encoding import _Worker
from tests.indexer.test_batch_job import write
from tests.indexer.test_resume import digests, records

CHUNK = 64
TWO = Cluster(workers=2)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.batch_job.CHUNK", CHUNK)


def worker_processes() -> list[int]:
    """The actors' processes of every Ray that a process of these tests started."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [int(pid) for pid, _, args in rows if args.startswith("ray::_Worker") and ours(int(pid))]


def test_two_workers_of_which_one_is_killed_midway_make_the_index_of_one_machine(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parts so small that both workers fill several.
    monkeypatch.setattr("cognate.index_kinds.CHUNK", 256)
    monkeypatch.setattr("indexer.ray_encoding.CHUNK", 256)
    source = write(tmp_path / "records.jsonl", records(2000))
    layout = Layout("ivf_pq", recall=0.5)
    one = indexer.Tally()
    indexer.build(source, tiny_bundle, tmp_path / "one", layout=layout, tally=one)
    done: list[int] = []
    killed: list[int] = []
    notes: list[str] = []
    one_at_a_time = threading.Lock()

    def advance(count: int) -> None:
        with one_at_a_time:
            done.append(count)
            if sum(done) > 500 and not killed:
                killed.append(worker_processes()[0])
                os.kill(killed[0], signal.SIGKILL)

    tally = indexer.Tally()
    manifest = indexer.build(
        source,
        tiny_bundle,
        tmp_path / "cluster",
        layout=layout,
        cluster=TWO,
        tally=tally,
        on_progress=advance,
        on_note=notes.append,
    )
    assert (manifest.kind, manifest.count, sum(done)) == ("ivf_pq", 2000, 2000)
    assert len(killed) == 1
    assert any("a Ray worker died" in note for note in notes)
    assert tally == one
    assert tally.repeated > 200
    assert digests(tmp_path / "cluster") == digests(tmp_path / "one")
    assert (tmp_path / "cluster" / APPROXIMATE).read_bytes() == (tmp_path / "one" / APPROXIMATE).read_bytes()
    assert not work_folder_of(tmp_path / "cluster").exists()
    assert not worker_processes()


def test_a_job_that_was_interrupted_goes_on_with_either_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    lines = records(400)
    source = write(tmp_path / "records.jsonl", [*lines[:300], {"text": 7}, *lines[300:]])
    tally = indexer.Tally()
    with pytest.raises(RecordError, match="records.jsonl:301: text must be a string"):
        indexer.build(source, tiny_bundle, tmp_path / "index", cluster=TWO, tally=tally)
    # Whole chunks before the bad line, those that were still being encoded among them.
    assert tally.kept == 256
    assert not (tmp_path / "index").exists()
    skipped: list[RecordError] = []
    resumed = indexer.Tally()
    indexer.build(
        source,
        tiny_bundle,
        tmp_path / "index",
        rejects=indexer.batch_job.Rejects(skipped.append),
        tally=resumed,
    )
    indexer.build(write(tmp_path / "good.jsonl", lines), tiny_bundle, tmp_path / "whole")
    assert (resumed.resumed, len(skipped)) == (256, 1)
    assert digests(tmp_path / "index") == digests(tmp_path / "whole")


class Mortal(_Worker):
    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        if "a text that kills" in texts:
            os._exit(1)
        return super().encode(texts)


def test_records_that_kill_each_worker_end_the_job_and_what_is_before_them_is_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.ray_encoding._Worker", Mortal)
    monkeypatch.setattr("indexer.ray_encoding.TRIES", 2)
    lines = [*records(CHUNK), {"text": "a text that kills"}]
    source = write(tmp_path / "records.jsonl", lines)
    tally = indexer.Tally()
    with pytest.raises(CognateError, match="2 Ray workers in turn died of the same records"):
        indexer.build(source, tiny_bundle, tmp_path / "index", cluster=Cluster(workers=1), tally=tally)
    assert tally.kept == CHUNK
    assert not (tmp_path / "index").exists()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of one node that these processes did not start: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}"]
    options = ["--num-cpus=2", "--include-dashboard=false", f"--object-store-memory={1 << 27}"]
    head = subprocess.Popen(
        [*command, *options, "--disable-usage-stats", "--node-ip-address=127.0.0.1"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # Its processes end with it.
        start_new_session=True,
    )
    assert head.stdout
    for line in head.stdout:
        if "Ray runtime started" in line:
            break
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.stdout.read()
    head.wait(timeout=60)


def test_a_cluster_that_is_there_is_used_and_left_running(
    cluster: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "records.jsonl", records(200))
    indexer.build(source, tiny_bundle, tmp_path / "one")
    for name in ("first", "second"):
        manifest = indexer.build(source, tiny_bundle, tmp_path / name, cluster=Cluster(cluster))
        assert manifest.count == 200
        assert digests(tmp_path / name) == digests(tmp_path / "one")
    with pytest.raises(CognateError, match=r"no node of the cluster has room .* 1 CPUs and 1 GPUs \(the"):
        indexer.build(source, tiny_bundle, tmp_path / "x", cluster=Cluster(cluster, gpus=1))
    assert not work_folder_of(tmp_path / "x").exists()


def test_a_worker_that_cannot_see_the_bundle_ends_the_job(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.ray_encoding import RayEncoder

    # What a node of its own would see: nothing at that path.
    def elsewhere(self: RayEncoder, *arguments: Any) -> None:
        original(self, *arguments)
        self._bundle = type(self._bundle)(tmp_path / "not there", self._bundle.manifest)

    original = RayEncoder.__init__
    monkeypatch.setattr(RayEncoder, "__init__", elsewhere)
    source = write(tmp_path / "records.jsonl", records(10))
    with pytest.raises(CognateError, match="a Ray worker on .* cannot encode: .*not there.*every node"):
        indexer.build(source, tiny_bundle, tmp_path / "index", cluster=TWO)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl"]


@pytest.mark.parametrize(
    ("late", "told"), [(1, ""), (2, "The current node timed out"), (2, "Timed out waiting for file")]
)
def test_a_ray_that_does_not_start_in_time_is_started_once_more(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int, told: str
) -> None:
    real, calls = ray.init, []

    def init(**given: Any) -> Any:
        calls.append(given)
        # The first process of its node is given no time at all, and Ray says what it says after 30 seconds.
        in_time = len(calls) > late
        monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "30" if in_time else "0")
        if not in_time and told.startswith("The current node"):
            # As Ray does where the others are late.
            raise Exception("The current node timed out during startup.")  # noqa: TRY002
        return real(**given)

    monkeypatch.setattr(ray, "init", init)
    source = write(tmp_path / "records.jsonl", records(20))
    notes: list[str] = []

    def build() -> None:
        one = Cluster(workers=1)
        indexer.build(source, tiny_bundle, tmp_path / "index", cluster=one, on_note=notes.append)

    if late == 1:
        build()
        assert "Ray did not start in time; it is started once more" in notes
    else:
        with pytest.raises(CognateError, match=f"Ray cannot be started here: {told}"):
            build()
        assert not (tmp_path / "index").exists()
    assert len(calls) == 2
