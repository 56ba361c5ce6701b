"""``cognate train --run`` and ``cognate runs``: a run seen from the command line."""

import html
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer

GROUPS = [
    [f"{verb} the {thing}", f"how do i {verb} {thing}"] for verb in ("open", "reset") for thing in "abc"
]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COGNATE_RUNS", str(tmp_path / "runs"))
    # A process that is started apart finds this tree.
    monkeypatch.setenv("PYTHONPATH", str(Path(trainer.__file__).parents[1]))
    lines = [json.dumps({"text": t, "label": str(n)}) for n, texts in enumerate(GROUPS) for t in texts]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "records.jsonl"


@pytest.fixture
def train(records: Path, tiny_model: Path) -> tuple[object, ...]:
    sizes = ("--epochs", 1, "--batch-size", 4, "--records-per-label", 2)
    return ("train", records, "--queries", records, "--index", records, "--model", tiny_model, *sizes)


def test_a_detached_run_is_followed_to_its_end(train: tuple[object, ...], cognate: Callable) -> None:
    started = cognate(*train, "--run", "first", "--detach", "--json")
    assert started.code == 0, started.err
    assert json.loads(started.out)["run"] == "first"
    followed = cognate("runs", "first", "--follow")
    assert followed.code == 0, followed.err
    assert "after epoch 1: average_precision" in followed.out
    assert "state: finished" in followed.out

    listed = json.loads(cognate("runs", "--json").out)
    assert [(run["run"], run["state"]) for run in listed] == [("first", "finished")]
    assert Path(listed[0]["checkpoint"]).joinpath("model.safetensors").is_file()
    assert "first" in cognate("runs").out
    measured = [json.loads(line) for line in cognate("runs", "first", "--metrics").out.splitlines()]
    assert {line["kind"] for line in measured} == {"step", "evaluation"}
    assert "finished" in cognate("runs", "first", "--logs").out
    assert "before" in cognate("runs", "first", "--examples").out
    examples = json.loads(cognate("runs", "first", "--examples", "--json").out)
    assert examples[0]["query"] == "open the a"
    assert len(examples[0]["after"]) > 0

    again = cognate(*train, "--run", "first")
    assert "there is a run first, finished" in again.check_one_line_error()
    resumed = cognate("train", "--resume", "first")
    assert "is finished" in resumed.check_one_line_error()
    stopped = cognate("runs", "first", "--stop")
    assert "is not running" in stopped.check_one_line_error()
    assert "ends after the step" not in stopped.err


def test_a_run_that_failed_says_why_and_is_resumed_as_it_was(
    train: tuple[object, ...], records: Path, cognate: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    failed = cognate(*train, "--run", "bad", "--set", "freeze=9")
    assert "nothing to train" in failed.check_one_line_error()
    # The terminal has it once, and the run's log as well.
    assert "nothing to train" not in caplog.text
    assert "ERROR freeze=9 leaves nothing to train" in cognate("runs", "bad", "--logs").out
    shown = cognate("runs", "bad", "--json")
    assert json.loads(shown.out)["state"] == "failed"
    assert "nothing to train" in json.loads(shown.out)["error"]
    other = cognate("train", records, "--resume", "bad", "--epochs", 3, "--set", "seed=5")
    assert "epochs is 1 in the run, 3 now; seed is 0 in the run, 5 now" in other.check_one_line_error()
    assert "nothing to train" in cognate("train", "--resume", "bad").check_one_line_error()


@pytest.mark.parametrize("detach", [(), ("--detach",)])
@pytest.mark.parametrize(
    "option",
    [
        ("--optimizer", "nope"),
        ("--loss", "nope"),
        ("--miner", "nope"),
        ("--loss-option", "nope=1"),
        ("--set", "scheduler_options.nope=1"),
    ],
)
def test_a_name_that_does_not_exist_leaves_no_run(
    option: tuple[str, ...],
    detach: tuple[str, ...],
    train: tuple[object, ...],
    tmp_path: Path,
    cognate: Callable,
) -> None:
    refused = cognate(*train, "--run", "bad", *option, *detach)
    assert "nope" in refused.check_one_line_error()
    assert not (tmp_path / "runs").exists()


def wait_for_a_step(name: str) -> trainer.RunFolder:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (Path(os.environ["COGNATE_RUNS"]) / name).is_dir():
            run = trainer.get_run(name)
            assert run.status().state in ("created", "running"), run.logs()
            if any(line["kind"] == "step" for line in run.metrics()):
                return run
        time.sleep(0.05)
    raise AssertionError(f"run {name} came to no step")


def test_ctrl_c_is_one_line_that_says_how_to_go_on(train: tuple[object, ...]) -> None:
    command = [sys.executable, "-m", "cognate", *map(str, train), "--epochs", "1000", "--run", "cut"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        run = wait_for_a_step("cut")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    for told in (err, run.logs()):
        assert "Traceback" not in told
        assert told.count("cognate train --resume cut") == 1
    assert run.status().state == "stopped"


def test_a_detached_run_that_gets_sigterm_logs_how_to_go_on(
    train: tuple[object, ...], cognate: Callable
) -> None:
    assert cognate(*train, "--epochs", 1000, "--run", "cut", "--detach").code == 0
    run = wait_for_a_step("cut")
    os.kill(json.loads(cognate("runs", "cut", "--json").out)["pid"], signal.SIGTERM)
    assert "interrupted; go on with it: cognate train --resume cut" in list(run.stream_logs())[-1]
    assert "Traceback" not in run.logs()
    assert run.status().state == "stopped"


def test_a_run_beside_out_publishes_there(
    train: tuple[object, ...], tmp_path: Path, cognate: Callable
) -> None:
    finished = cognate(*train, "--run", "both", "--out", tmp_path / "checkpoint", "--json")
    assert finished.code == 0, finished.err
    assert json.loads(cognate("runs", "both", "--json").out)["checkpoint"] == str(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint/model.safetensors").is_file()


def test_the_report_says_how_to_come_to_the_same_checkpoint(
    train: tuple[object, ...], tmp_path: Path, cognate: Callable
) -> None:
    changed = ("--set", "scheduler=cosine", "--set", "loss_options.margin=0.3", "--learning-rate", 1e-3)
    assert cognate(*train, "--run", "first", *changed).code == 0
    told = cognate("runs", "first", "--report")
    assert told.out.strip() == str(tmp_path / "runs/first/report.html")
    (command,) = re.findall("<pre>(.*?)</pre>", Path(told.out.strip()).read_text(), re.DOTALL)
    again = cognate(*shlex.split(html.unescape(command))[1:])
    assert again.code == 0, again.err
    first, second = (
        tmp_path / f"runs/{name}/checkpoint/model.safetensors" for name in ("first", "first-again")
    )
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("train", "x.jsonl"),
        ("train", "x.jsonl", "--out", "y", "--detach"),
        ("train", "x.jsonl", "--run", "y", "--processes", "2"),
        ("train", "--resume", "a", "--run", "b"),
        ("runs", "--follow"),
        ("runs", "--report"),
        ("runs", "a", "--logs", "--metrics"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(arguments: tuple[str, ...], cognate: Callable) -> None:
    assert cognate(*arguments).code == 2


def test_options_come_from_set_and_from_a_file_flags_first(
    train: tuple[object, ...], tmp_path: Path, cognate: Callable
) -> None:
    (tmp_path / "options.toml").write_text("learning_rate = 1e-3\nepochs = 7\n[loss_options]\nmargin = 0.3\n")
    finished = cognate(
        *train,
        "--out",
        tmp_path / "out",
        "--config",
        tmp_path / "options.toml",
        "--set",
        "loss_options.margin=0.4",
    )
    assert finished.code == 0, finished.err
    options = json.loads((tmp_path / "out/training.json").read_text())["options"]
    assert (options["epochs"], options["learning_rate"]) == (1, 1e-3)
    assert options["loss_options"] == {"margin": 0.4}
    # The file's options are of the loss that it names, or of the default one.
    other = ("--config", tmp_path / "options.toml", "--loss", "SupConLoss", "--set", "miner=none")
    finished = cognate(*train, "--out", tmp_path / "other", *other)
    assert finished.code == 0, finished.err
    options = json.loads((tmp_path / "other/training.json").read_text())["options"]
    assert (options["loss_options"], options["miner_options"]) == ({}, {})
    for bad, message in (
        ("nonsense", "is no option"),
        ("nonsense=1", "there is no option nonsense; those that exist are loss, loss_options, miner, "),
        ("loss_options.margin=null", "loss_options.margin: None is no number, no text and neither true"),
        ("epochs=x", "epochs: "),
        ("run=x", "run cannot be given by --set or in the --config file; see the arguments and flags of "),
    ):
        refused = cognate(*train, "--out", tmp_path / "bad", "--set", bad)
        assert message in refused.check_one_line_error()
    (tmp_path / "options.toml").write_text("epochs = \n")
    refused = cognate(*train, "--out", tmp_path / "bad", "--config", tmp_path / "options.toml")
    assert "is no TOML" in refused.check_one_line_error()
    assert not (tmp_path / "bad").exists()
