"""The folder of a run says what holds, whatever became of its process."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cognate.errors import CognateError
from cognate.runs import RunFolder, RunStoppedError, create_run, get_run, list_runs, runs_dir


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run("first", {"model": "minilm"}, tmp_path)


def test_a_run_goes_from_created_to_finished(run: RunFolder, tmp_path: Path) -> None:
    assert run.status().state == "created"
    assert run.config() == {"model": "minilm"}
    with run.running():
        status = get_run("first", tmp_path).status()
        assert (status.state, status.pid) == ("running", os.getpid())
        assert run.checkpoint is None
        (run.folder / "checkpoint").mkdir()
    assert run.status().state == "finished"
    assert run.status().ended_at is not None
    assert run.checkpoint == run.folder / "checkpoint"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (CognateError("no such loss"), "failed"),
        (RunStoppedError("asked to"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (MemoryError(), "failed"),
    ],
)
def test_what_ends_a_run_is_its_state(run: RunFolder, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), run.running():
        raise error
    assert run.status().state == state
    assert run.status().error


def test_a_run_whose_process_is_gone_has_failed(run: RunFolder) -> None:
    program = (
        "import os, pathlib, sys\nfrom cognate.runs import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).running():\n    os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    subprocess.run(
        [sys.executable, "-c", program, run.folder], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert json.loads((run.folder / "state.json").read_text())["state"] == "running"
    assert run.status().state == "failed"
    assert "without a word" in (run.status().error or "")


def test_another_process_that_got_the_pid_is_not_the_run(run: RunFolder) -> None:
    with run.running():
        state = json.loads((run.folder / "state.json").read_text())
        state["process_started"] -= 1000
        (run.folder / "state.json").write_text(json.dumps(state))
        assert run.status().state == "failed"


def test_a_run_is_run_by_one_process_at_a_time(run: RunFolder) -> None:
    with run.running():
        with pytest.raises(CognateError, match=f"in process {os.getpid()}"), run.running():
            pass
        assert run.status().state == "running"


def test_two_runs_of_one_name_are_refused_unless_forced(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CognateError, match="there is a run first, created.*--force.*--resume first"):
        create_run("first", {}, tmp_path)
    with run.running(), pytest.raises(CognateError, match="is running.*--stop"):
        create_run("first", {}, tmp_path, force=True)
    with pytest.raises(CognateError, match="there is a run first, finished; .*--force") as finished:
        create_run("first", {}, tmp_path)
    assert "--resume" not in str(finished.value)
    assert create_run("first", {"new": 1}, tmp_path, force=True).config() == {"new": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_what_a_killed_force_left_is_in_no_ones_way(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / ".first.old").mkdir()
    (tmp_path / ".first.old/state.json").touch()
    assert create_run("first", {"new": 1}, tmp_path, force=True).config() == {"new": 1}


def test_a_run_that_cannot_be_replaced_is_still_there(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.folder / "log").write_text("what it said\n")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if json.loads((path / "config.json").read_text()) == {"new": 1}:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(CognateError, match="first cannot be written: Input/output error"):
        create_run("first", {"new": 1}, tmp_path, force=True)
    assert run.config() == {"model": "minilm"}
    assert run.logs() == "what it said\n"
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_run_replaces_one_that_cannot_be_deleted(tmp_path: Path, small_disk: Path) -> None:
    runs = tmp_path / "runs"
    run = create_run("first", {}, runs)
    # What is mounted cannot be deleted, not even by root.
    (run.folder / "mounted").mkdir()
    subprocess.run(["mount", "--bind", small_disk, run.folder / "mounted"], check=True)
    try:
        assert create_run("first", {"new": 1}, runs, force=True).config() == {"new": 1}
        assert get_run("first", runs).config() == {"new": 1}
    finally:
        (mounted,) = runs.glob("**/mounted")
        subprocess.run(["umount", mounted], check=True)


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(CognateError, match="is no run"):
        create_run("mine", {}, tmp_path, force=True)
    assert (tmp_path / "mine/file").exists()


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a" * 101, "a b"])
def test_a_name_that_is_no_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CognateError, match="cannot be the name of a run"):
        create_run(name, {}, tmp_path)
    with pytest.raises(CognateError, match="cannot be the name of a run"):
        get_run(name, tmp_path)


def test_an_unknown_run_is_told_with_those_that_exist(run: RunFolder, tmp_path: Path) -> None:
    create_run("second", {}, tmp_path)
    with pytest.raises(CognateError, match="no run 'third' in .*; those that exist: (first|second), "):
        get_run("third", tmp_path)
    assert {found.name for found in list_runs(tmp_path)} == {"first", "second"}


def test_runs_live_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COGNATE_RUNS", raising=False)
    assert runs_dir() == Path("runs")
    monkeypatch.setenv("COGNATE_RUNS", "elsewhere")
    assert runs_dir() == Path("elsewhere")
    assert runs_dir("here") == Path("here")


def test_metrics_and_examples_are_read_as_they_are_written(run: RunFolder) -> None:
    run.add_metrics({"kind": "step", "step": 1})
    run.add_metrics({"kind": "step", "step": 2})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')  # What a killed process left.
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.keep(lambda line: line["step"] < 2)
    assert (run.folder / "metrics.jsonl").read_text() == '{"kind": "step", "step": 1}\n'
    for hits in (["a"], ["b"], ["c"]):
        run.add_examples([{"row": 0, "query": "q", "label": "x", "hits": hits}])
    assert run.example_results() == [{"query": "q", "label": "x", "before": ["a"], "after": ["c"]}]


def test_the_log_is_followed_until_the_run_ends(run: RunFolder) -> None:
    lines = run.stream_logs()
    with run.running(), (run.folder / "log").open("a") as log:
        log.write("one\ntwo\n")
        log.flush()
        assert [next(lines), next(lines)] == ["one", "two"]
        log.write("three\nlast")
    assert list(lines) == ["three", "last"]


def test_stopping_asks_the_process_and_waits_for_it(run: RunFolder) -> None:
    with run.running():
        assert not run.stop_asked()
        program = (
            "import pathlib, sys\nfrom cognate.runs import RunFolder\n"
            "RunFolder(pathlib.Path(sys.argv[1])).stop()\n"
        )
        root = str(Path(__file__).resolve().parents[1])
        asking = subprocess.Popen(
            [sys.executable, "-c", program, run.folder], env={**os.environ, "PYTHONPATH": root}
        )
        while not run.stop_asked():
            assert asking.poll() is None
    assert asking.wait(60) == 0
    with pytest.raises(CognateError, match="is not running: it is finished"):
        run.stop()


def test_a_run_that_is_asked_to_stop_while_its_process_loads_stops(run: RunFolder) -> None:
    # It has loaded once it is asked.
    program = (
        "import pathlib, sys, time\nfrom cognate.runs import RunFolder, RunStoppedError\n"
        "run = RunFolder(pathlib.Path(sys.argv[1]))\n"
        "while not run.stop_asked():\n    time.sleep(0.01)\n"
        "with run.running():\n"
        "    if run.stop_asked():\n        raise RunStoppedError('asked to')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    run.start(lambda: subprocess.Popen([sys.executable, "-c", program, run.folder], env=environment).pid)
    assert run.status().state == "created"
    run.stop()
    assert run.status().state == "stopped"


def test_an_attempt_is_not_stopped_by_what_an_earlier_one_was_asked(run: RunFolder) -> None:
    with run.running():
        (run.folder / "stop").touch()
    with run.running():
        assert not run.stop_asked()
        (run.folder / "stop").touch()
    run.start(lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit"]).pid)
    assert not run.stop_asked()


def test_a_run_without_a_process_is_not_waited_for(run: RunFolder) -> None:
    with pytest.raises(CognateError, match="is not running: it is created"):
        run.stop()


def test_a_process_that_died_before_it_ran_the_run_is_not_followed_for_ever(run: RunFolder) -> None:
    run.start(lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit"]).pid)
    assert list(run.stream_logs()) == []
    assert run.status().state == "failed"
