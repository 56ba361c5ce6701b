"""Loggers get the loss, the metrics and the options; a user's own callback hears of the same."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import trainer
from cognate.errors import CognateError
from cognate.metrics import METRICS
from cognate.runs import TENSORBOARD

OPTIONS = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "k": 5}


def fit(data: Path, model: Path, **given: object) -> trainer.Run:
    sources = {"queries": data / "queries.jsonl", "index": data / "index.jsonl", "runs_dir": data / "runs"}
    return trainer.fit(str(model), data / "train.jsonl", **{**sources, "run": "a", **OPTIONS, **given})


def test_tensorboard_gets_the_loss_of_every_step_and_the_metrics_of_every_epoch(
    data: Path, tiny_model: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(data, tiny_model, loggers=["tensorboard"])
    board = EventAccumulator(str(data / "runs/a" / TENSORBOARD)).Reload()
    measured = trainer.get_run("a", data / "runs").metrics()
    losses = [line["loss"] for line in measured if line["kind"] == "step"]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses, abs=1e-4)
    for metric in METRICS:
        told = [event.value for event in board.Scalars(f"eval/{metric}")]
        assert told == pytest.approx([e.metrics[metric] for e in run.evaluations], abs=1e-6)
    (written,) = board.Tensors("args/text_summary")
    assert json.loads(written.tensor_proto.string_val[0])["loss"] == "TripletMarginLoss"


def test_mlflow_gets_the_options_and_the_metrics_and_a_failed_run_is_ended_there(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is heavy: pip install mlflow-skinny to test it")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = fit(data, tiny_model, loggers=["mlflow"])
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (told,) = client.search_runs(["0"])
    assert told.info.run_name == "a"
    assert told.info.status == "FINISHED"
    assert told.data.params["miner"] == "TripletMarginMiner"
    assert told.data.metrics["eval_average_precision"] == run.evaluations[-1].metrics["average_precision"]
    # So large a rate that the weights overflow.
    options = {"optimizer": "sgd", "optimizer_options": {"lr": 1e30}, "max_gradient_norm": 0}
    with pytest.raises(CognateError, match="not finite"):
        fit(data, tiny_model, run="b", loggers=["mlflow"], scheduler="constant", **options)
    assert mlflow.active_run() is None
    with mlflow.start_run() as own:
        with pytest.raises(CognateError, match="not finite"):
            fit(data, tiny_model, run="c", loggers=["mlflow"], scheduler="constant", **options)
        active = mlflow.active_run()
        assert active is not None
        assert active.info.run_id == own.info.run_id
    assert {told.info.status for told in client.search_runs(["0"])} == {"FINISHED", "FAILED"}


def test_wandb_gets_the_options_and_the_metrics(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is heavy: pip install wandb to test it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    fit(data, tiny_model, loggers=["wandb"])
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"eval/average_precision" in content
    assert b"TripletMarginMiner" in content
    # Another fit has a run of its own, unless its caller has begun one, which stays open.
    fit(data, tiny_model, run="b", loggers=["wandb"])
    assert len([*tmp_path.glob("wandb/offline-run-*")]) == 2
    own = wandb.init()
    fit(data, tiny_model, run="c", loggers=["wandb"])
    assert wandb.run is own
    own.finish()
    assert len([*tmp_path.glob("wandb/offline-run-*")]) == 3


def test_a_logger_that_cannot_write_is_refused_before_anything_is_done(data: Path, tiny_model: Path) -> None:
    with pytest.raises(CognateError, match="tensorboard writes in a run's folder; give --run"):
        fit(data, tiny_model, run=None, out=data / "out", loggers=["tensorboard"])
    with pytest.raises(ValueError, match="'tensorboard', 'mlflow' or 'wandb'"):
        fit(data, tiny_model, loggers=["clearml"])
    missing = next((name for name in ("wandb", "mlflow") if importlib.util.find_spec(name) is None), None)
    if missing is None:
        pytest.skip("every logger is installed")
    with pytest.raises(CognateError, match=f"not installed: pip install {missing}"):
        fit(data, tiny_model, loggers=[missing])
    assert not (data / "runs").exists()


def test_a_users_callback_hears_of_steps_and_metrics_and_may_stop_training(
    data: Path, tiny_model: Path
) -> None:
    heard: list[dict[str, float]] = []

    class Own(TrainerCallback):
        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            logs: dict[str, float],
            **given: object,
        ) -> None:
            heard.append(logs)
            if state.epoch == 1 and "eval_average_precision" in logs:
                control.should_training_stop = True

    run = fit(data, tiny_model, callbacks=[Own()])
    assert len(run.evaluations) == 2
    metrics = [logs["eval_average_precision"] for logs in heard if "eval_average_precision" in logs]
    assert metrics == [evaluation.metrics["average_precision"] for evaluation in run.evaluations]
    assert sum("loss" in logs for logs in heard) == len(
        [line for line in trainer.get_run("a", data / "runs").metrics() if line["kind"] == "step"]
    )
