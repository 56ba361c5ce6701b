"""A run that ends early, however it does, goes on to what it would have given."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer
from cognate.artifact import sha256_file
from cognate.errors import CognateError
from cognate.runs import RunStoppedError
from trainer.starting import expected_job
from trainer.training_state import TrainingStates, load_state

OPTIONS = {"epochs": 3, "batch_size": 8, "records_per_label": 2, "learning_rate": 1e-3, "k": 5}


def fit(data: Path, model: Path, name: str, **given: object) -> trainer.Run:
    return trainer.fit(
        str(model),
        data / "train.jsonl",
        queries=data / "queries.jsonl",
        index=data / "index.jsonl",
        run=name,
        runs_dir=data / "runs",
        **{**OPTIONS, **given},
    )


def resume(data: Path, name: str) -> trainer.Run:
    return trainer.resume(name, runs_dir=data / "runs")


def get(data: Path, name: str) -> trainer.RunFolder:
    return trainer.get_run(name, data / "runs")


def check_same(data: Path, whole: str, resumed: str) -> None:
    """Two runs came to the same weights, by the same losses and evaluations."""
    first, second = (get(data, name) for name in (whole, resumed))
    assert second.status().state == "finished"
    weights = [sha256_file(run.checkpoint / "model.safetensors") for run in (first, second)]
    assert weights[0] == weights[1]
    assert first.metrics() == second.metrics()
    assert first.example_results() == second.example_results()
    losses = [json.loads((r.checkpoint / "training.json").read_text())["losses"] for r in (first, second)]
    assert losses[0] == losses[1]


class CutError(Exception):
    pass


def at(step: int, error: Callable[[], BaseException] = CutError) -> Callable[[trainer.Progress], None]:
    def on_progress(progress: trainer.Progress) -> None:
        if progress.step == step:
            raise error()

    return on_progress


def test_a_run_killed_with_kill_9_goes_on_to_the_same_metrics(data: Path, tiny_model: Path) -> None:
    fit(data, tiny_model, "whole", checkpoint_steps=2)
    steps = get(data, "whole").metrics()[-1]["step"]
    program = f"""
import os, signal, trainer
def kill(progress):
    if progress.step == {steps - 1}:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.fit({str(tiny_model)!r}, "train.jsonl", queries="queries.jsonl", index="index.jsonl", run="killed",
    runs_dir="runs", on_progress=kill, checkpoint_steps=2, **{OPTIONS!r})
"""
    root = str(Path(trainer.__file__).parents[1])
    killed = subprocess.run(
        [sys.executable, "-c", program], cwd=data, env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    status = get(data, "killed").status()
    assert status.state == "failed"
    assert "without a word" in (status.error or "")
    assert get(data, "killed").checkpoint is None
    # What the process left of a state that it was writing is passed over.
    (data / "runs/killed/checkpoints/.partial").mkdir()

    run = resume(data, "killed")
    assert len(run.evaluations) == 1 + OPTIONS["epochs"]
    check_same(data, "whole", "killed")


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_run_that_failed_anywhere_goes_on_to_the_same_weights(
    step: int, data: Path, tiny_model: Path
) -> None:
    options = {"checkpoint_steps": 3, "pretrained_weight": 0.2}
    fit(data, tiny_model, "whole", **options)
    with pytest.raises(CutError):
        fit(data, tiny_model, "failed", on_progress=at(step), **options)
    assert get(data, "failed").status().state == "failed"
    resume(data, "failed")
    check_same(data, "whole", "failed")


def test_a_run_asked_to_stop_saves_where_it_is_and_goes_on(data: Path, tiny_model: Path) -> None:
    fit(data, tiny_model, "whole")

    def ask(progress: trainer.Progress) -> None:
        if progress.step == 2:
            (data / "runs/asked/stop").touch()

    with pytest.raises(RunStoppedError, match="--resume"):
        fit(data, tiny_model, "asked", on_progress=ask)
    stopped = get(data, "asked")
    assert stopped.status().state == "stopped"
    assert [line["step"] for line in stopped.metrics() if line["kind"] == "step"][-1] in (2, 3)
    resume(data, "asked")
    check_same(data, "whole", "asked")


def test_the_last_training_states_are_kept_without_pickle(data: Path, tiny_model: Path) -> None:
    fit(data, tiny_model, "run", checkpoint_steps=1, checkpoints_kept=2)
    states = data / "runs/run/checkpoints"
    assert len(list(states.iterdir())) == 2
    assert {path.suffix for path in states.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_finished_run_and_a_running_one_are_not_resumed(data: Path, tiny_model: Path) -> None:
    fit(data, tiny_model, "run", epochs=1)
    with pytest.raises(CognateError, match="is finished; its checkpoint is .*checkpoint"):
        resume(data, "run")
    with get(data, "run").running(), pytest.raises(CognateError, match=f"in process {os.getpid()}"):
        resume(data, "run")


def test_what_changed_since_a_run_was_started_is_told(data: Path, tiny_model: Path) -> None:
    with pytest.raises(CutError):
        fit(data, tiny_model, "run", on_progress=at(1))
    expected = expected_job(get(data, "run"), {"epochs": 5, "learning_rate": 1e-3}, model="minilm")
    with pytest.raises(CognateError, match=r"epochs is 3 in the run, 5 now; model is .*, 'minilm' now; put"):
        trainer.resume("run", runs_dir=data / "runs", expected=expected)
    with (data / "train.jsonl").open("a") as file:
        file.write('{"text": "more", "label": "more"}\n')
    with pytest.raises(CognateError, match=r"the content of .*train.jsonl is another"):
        resume(data, "run")


def test_a_run_that_finished_training_but_was_not_published_is(
    data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(data, tiny_model, "whole")
    (data / "out").write_text("in the way")
    with pytest.raises(CognateError, match="not a folder"):
        fit(data, tiny_model, "late", out=data / "out")
    (data / "out").unlink()
    last = len([line for line in get(data, "whole").metrics() if line["kind"] == "step"])

    def block(epoch: int, evaluation: object) -> None:
        if epoch == OPTIONS["epochs"]:
            (data / "out").write_text("in the way")

    with pytest.raises(CognateError, match="not a folder"):
        fit(data, tiny_model, "late", out=data / "out", on_evaluation=block)
    (data / "out").unlink()
    steps: list[object] = []
    trainer.resume("late", runs_dir=data / "runs", on_progress=steps.append)
    assert steps == []
    assert last
    assert get(data, "late").checkpoint == data / "out"
    check_same(data, "whole", "late")


def test_a_loss_that_is_no_number_stops_says_where_and_keeps_the_last_good_state(
    data: Path, tiny_model: Path
) -> None:
    with pytest.raises(
        CognateError, match=r"not finite in step \d+, batch \d+ of epoch \d.*texts, the first '.*kept"
    ):
        # So large a rate that the weights overflow, some steps on.
        fit(
            data,
            tiny_model,
            "bad",
            optimizer="sgd",
            optimizer_options={"lr": 1e30},
            max_gradient_norm=0,
            scheduler="polynomial",
            scheduler_options={"power": 1.0, "lr_end": 1e-9},
            warmup_steps=0,
            warmup_ratio=0.9,
            checkpoint_steps=1,
            batch_size=4,
        )
    run = get(data, "bad")
    assert run.status().state == "failed"
    assert "not finite in step" in (run.status().error or "")
    assert "not finite in step" in run.logs()
    state = load_state(TrainingStates(data / "runs/bad/checkpoints", 2).last())
    assert all(value.isfinite().all() for value in state["loss"].values() if hasattr(value, "isfinite"))
