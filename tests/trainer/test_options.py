"""Each option does what it says, and a bad one is one clear line."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import get_scheduler

import trainer
from cognate.artifact import sha256_file
from cognate.errors import CognateError
from trainer.layers import by_depth
from trainer.monitoring import Monitor
from trainer.optimization import hold_within_epochs, make_optimizer
from trainer.options import TrainingOptions
from trainer.shaping import shape

OPTIONS = {"epochs": 2, "batch_size": 8, "records_per_label": 2, "learning_rate": 1e-3, "k": 5}
TEXTS = ["how do i open the door", "printer"]


def fit(data: Path, model: Path, **given: object) -> trainer.Run:
    sources = {"queries": data / "queries.jsonl", "index": data / "index.jsonl", "out": data / "out"}
    return trainer.fit(str(model), data / "train.jsonl", **{**sources, **OPTIONS, "force": True, **given})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(SentenceTransformer(str(folder), device="cpu").state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "weight_decay": 0.1},
        {"optimizer": "rmsprop", "scheduler": "cosine_with_restarts", "scheduler_options": {"num_cycles": 2}},
        {"scheduler": "polynomial", "scheduler_options": {"power": 2.0}, "warmup_steps": 1},
        {"scheduler": "constant", "max_gradient_norm": 0, "layer_decay": 0.5},
        {"gradient_accumulation": 2, "average_last": 0.9, "memory": 16},
        {
            "loss": "ProxyAnchorLoss",
            "loss_options": {},
            "miner": "none",
            "loss_optimizer_options": {"lr": 0.1},
        },
        {"matryoshka": [8, 32], "freeze": "embeddings"},
        {"output_dim": 8, "freeze": "encoder", "prompts": {"query": "q: ", "passage": "p: "}},
        {"pooling": "cls", "freeze": 1},
        {"lora": 2},
        {
            "sampler": "random",
            "num_workers": 1,
            "loss": "ProxyAnchorLoss",
            "loss_options": {},
            "miner": "none",
        },
        {"scheduler": "cosine", "scheduler_step": "epoch", "scheduler_options": {"num_cycles": 0.5}},
        {"scheduler": "constant_with_warmup", "warmup_ratio": 0.5},
    ],
    ids=lambda options: "+".join(options),
)
def test_a_run_with_these_options_gives_a_changed_model_that_opens(
    options: dict[str, object], data: Path, tiny_model: Path
) -> None:
    run = fit(data, tiny_model, **options)
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert training["options"] | options == training["options"]
    vectors = SentenceTransformer(str(run.checkpoint), device="cpu").encode(TEXTS)
    before = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    assert vectors.shape == (2, options.get("output_dim", 32))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert vectors.shape != before.shape or np.abs(vectors - before).max() > 1e-4
    assert (
        trainer.load_encoder(str(run.checkpoint)).model.prompts.items() >= options.get("prompts", {}).items()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "Sgdd"}, "there is no optimizer 'Sgdd'; those that exist are .*AdamW"),
        ({"optimizer_options": {"momentum": 1}}, "adamw has no option momentum; those it has are .*betas"),
        ({"optimizer_options": {"betas": [2.0, 1.0]}}, "adamw cannot be made from these options"),
        ({"scheduler_options": {"power": 1}}, "linear has no option power; those it has are none"),
        (
            {"scheduler": "polynomial", "scheduler_options": {"power": "abc"}},
            "polynomial's option power must be a number, not 'abc'",
        ),
        (
            {"scheduler": "cosine_with_restarts", "scheduler_options": {"num_cycles": "abc"}},
            "num_cycles must be a number, not 'abc'",
        ),
        ({"loss_optimizer_options": {"lr": "abc"}}, "adamw's option lr must be a number, not 'abc'"),
        ({"optimizer_options": {"betas": [0.9]}}, "betas must be a list of 2 numbers, not .0.9."),
        ({"loss_options": {"margin": "abc"}}, "TripletMarginLoss's option margin must be a number"),
        ({"loss_optimizer_options": {"lr": 1.0}}, "TripletMarginLoss has no weights"),
        (
            {"memory": 8, "loss": "ArcFaceLoss", "loss_options": {}},
            "ArcFaceLoss takes no memory",
        ),
        ({"matryoshka": [8], "loss": "ArcFaceLoss", "loss_options": {}}, "leave out matryoshka"),
        ({"matryoshka": [64]}, "matryoshka asks for 64 components, but an embedding has only 32"),
        ({"val_split": 0.2}, "val_split makes what queries and index give"),
        ({"freeze": 9}, "nothing to train"),
        ({"precision": "fp16"}, "precision=fp16 needs a CUDA GPU"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: dict[str, object], message: str, data: Path, tiny_model: Path
) -> None:
    with pytest.raises(CognateError, match=message):
        fit(data, tiny_model, **options)
    assert not (data / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "accuracy"}, "no 'accuracy' to monitor; there are loss, average_precision"),
        ({"freeze": "encoder"}, "give output_dim"),
        ({"memory": 4}, "memory must hold a batch"),
        ({"memory": 128, "matryoshka": [8]}, "do not go together"),
        ({"lora": 2, "freeze": 1}, "leave out freeze"),
        ({"mine_negatives": True, "sampler": "random"}, "leave out sampler=random"),
        ({"batch_size": "many"}, "number from 4 to 65536, or auto, not 'many'"),
        ({"batch_size": 1}, "number from 4 to 65536, or auto, not 1"),
        ({"batch_size": "auto", "memory": 64}, "give batch_size a number"),
        ({"margin": 0.3, "loss": "SupConLoss"}, "no option margin; those that exist are loss, .* loggers"),
        ({"scheduler_options": {"power": [1]}}, r"\[1\] is no number, no text and neither true nor false"),
        ({"optimizer_options": {"betas": ["x"]}}, r"\['x'\] is no number, no text"),
    ],
)
def test_options_that_contradict_or_are_unknown_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        TrainingOptions(**options)


def test_another_loss_or_miner_has_no_options_but_those_given() -> None:
    settings = TrainingOptions(loss="SupConLoss", miner="BatchHardMiner")
    assert (settings.loss_options, settings.miner_options) == ({}, {})
    assert TrainingOptions(loss="SupConLoss", loss_options={"temperature": 0.2}).loss_options == {
        "temperature": 0.2
    }
    # The default ones keep theirs, by name as well.
    default = TrainingOptions()
    assert TrainingOptions(loss=default.loss, miner=default.miner) == default
    assert default.miner_options == {"margin": 0.2, "type_of_triplets": "semihard"}


def test_frozen_weights_stay_and_low_rank_ones_are_merged(data: Path, tiny_model: Path) -> None:
    before = weights(tiny_model)
    after = weights(fit(data, tiny_model, freeze=1).checkpoint)
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in before if "embeddings" in name or "layer.0." in name} <= same
    assert not any("layer.1.attention.self.query" in name for name in same)
    assert set(weights(fit(data, tiny_model, lora=2).checkpoint)) == set(before)


def test_layers_learn_slower_the_deeper_they_are(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    assert {depth for depth, _ in by_depth(model)} == {-1, 0, 1, 2}
    optimizer = make_optimizer(TrainingOptions(layer_decay=0.5, learning_rate=0.8), model, [])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_head_comes_before_the_normalisation(tiny_model: Path) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    shape(model, TrainingOptions(output_dim=8, pooling="max"))
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert model.encode(TEXTS).shape == (2, 8)


def test_labels_left_out_by_val_split_are_searched_in_themselves(data: Path, tiny_model: Path) -> None:
    run = fit(data, tiny_model, queries=None, index=None, val_split=0.3)
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert training["labels"] == 7
    assert training["records_dropped_as_alone_in_their_label"] == 0
    assert run.evaluations[0].queries == run.evaluations[0].records == 9
    with pytest.raises(CognateError, match="leaves 1 of 10 labels"):
        fit(data, tiny_model, queries=None, index=None, val_split=0.9)


def test_several_files_are_trained_on_as_one(data: Path, tiny_model: Path) -> None:
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    for name, part in (("a", lines[::2]), ("b", lines[1::2])):
        (data / f"{name}.jsonl").write_text("".join(part))
    run = trainer.fit(str(tiny_model), [data / "a.jsonl", data / "b.jsonl"], out=data / "out", **OPTIONS)
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert (training["records"], training["labels"]) == (30, 10)
    assert set(training["data"]) == {"train", "train 2"}


def test_training_stops_early_and_keeps_the_best_epoch(data: Path, tiny_model: Path) -> None:
    # No epoch is better than the first by so much, and so the second is waited for and no other.
    options = {"epochs": 5, "patience": 1, "min_delta": 0.9, "keep_best": True}
    run = fit(data, tiny_model, **options, run="early", runs_dir=data / "runs", out=None)
    assert (run.epoch, len(run.evaluations)) == (1, 3)
    again = fit(data, tiny_model, **{**options, "epochs": 5, "patience": 2})
    assert (again.epoch, len(again.evaluations)) == (1, 4)
    files = [run.checkpoint / "model.safetensors", again.checkpoint / "model.safetensors"]
    assert sha256_file(files[0]) == sha256_file(files[1])
    steps: list[trainer.Progress] = []
    with pytest.raises(CognateError, match="no average_precision to monitor without evaluation"):
        fit(data, tiny_model, queries=None, index=None, patience=1, on_progress=steps.append)
    assert steps == []
    assert fit(data, tiny_model, queries=None, index=None, patience=1, monitor="loss").evaluations == []


def test_the_monitor_waits_for_what_is_better() -> None:
    settings = TrainingOptions(monitor="loss", patience=2, min_delta=0.1, baseline=1.0)
    monitor = Monitor(settings)
    seen = [
        (monitor.update(epoch, {"loss": loss}), monitor.gives_up)
        for epoch, loss in enumerate([1.2, 0.8, 0.75])
    ]
    assert seen == [(False, False), (True, False), (False, False)]
    again = Monitor(settings)
    again.load_state_dict(monitor.state_dict())
    assert not again.update(3, {"loss": 0.71})
    assert again.gives_up
    assert again.best_epoch == 1


def test_a_run_with_averages_memory_and_best_epoch_goes_on_to_the_same(data: Path, tiny_model: Path) -> None:
    options = {"average_last": 0.5, "memory": 16, "keep_best": True, "checkpoint_steps": 1}
    options |= {"gradient_accumulation": 2}
    options |= {"runs_dir": data / "runs", "out": None, "epochs": 3, "scheduler": "cosine", "output_dim": 8}
    whole = fit(data, tiny_model, run="whole", **options)

    def cut(progress: trainer.Progress) -> None:
        if progress.step == progress.steps - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, tiny_model, run="cut", on_progress=cut, **options)
    resumed = trainer.resume("cut", runs_dir=data / "runs")
    assert resumed.epoch == whole.epoch
    assert (
        trainer.get_run("cut", data / "runs").metrics() == trainer.get_run("whole", data / "runs").metrics()
    )
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert sha256_file(whole.checkpoint / name) == sha256_file(resumed.checkpoint / name)


def test_an_epoch_in_which_nothing_is_mined_is_told(
    data: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="trainer"):
        fit(data, tiny_model, miner_options={"margin": -5.0, "type_of_triplets": "hard"}, epochs=1)
    assert "found nothing to learn from in epoch 1" in caplog.text
    assert "type_of_triplets=all" in caplog.text


def test_gradient_checkpointing_computes_layers_again_and_comes_to_the_same_weights(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertIntermediate

    passes = []
    forward = BertIntermediate.forward

    def counted(layer: BertIntermediate, *given: object, **named: object) -> object:
        passes.append(layer)
        return forward(layer, *given, **named)

    monkeypatch.setattr(BertIntermediate, "forward", counted)
    # Packed, the dice of dropout would fall otherwise.
    monkeypatch.setattr("trainer.losses.is_packable", lambda _: False)
    plain = weights(fit(data, tiny_model, epochs=1, out=tmp_path / "plain").checkpoint)
    before = len(passes)
    again = weights(
        fit(data, tiny_model, epochs=1, out=tmp_path / "again", gradient_checkpointing=True).checkpoint
    )
    assert len(passes) - before > before
    assert all(torch.allclose(plain[name], again[name], atol=1e-5) for name in plain)


def test_a_learning_rate_by_epoch_climbs_by_step_and_then_changes_between_epochs_only() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=12)
    hold_within_epochs(scheduler, warmup_steps=2, steps_of_an_epoch=4)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0] + [0.8] * 4 + [0.4] * 4)


def test_what_the_data_lacks_for_full_batches_is_told(
    data: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write('{"text": "alone", "label": "alone"}\n')
    fit(data, tiny_model, epochs=1, batch_size=64)
    assert "1 records are alone in their label, and left out" in caplog.text
    assert "the data has 10 labels, and a batch wants 32" in caplog.text


def test_memory_that_runs_out_is_one_line_with_the_advice_that_applies(data: Path, tiny_model: Path) -> None:
    def run_out(progress: trainer.Progress) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(
        CognateError, match="out of memory; try a batch_size below 8 .*precision=bf16"
    ) as told:
        fit(data, tiny_model, gradient_checkpointing=True, on_progress=run_out)
    assert "gradient_checkpointing" not in str(told.value)


COMPILED = """
import sys, trainer
from cognate.errors import CognateError
model, data, out = sys.argv[1:]
try:
    trainer.fit(model, data, out=out, compile=True, epochs=1, batch_size=8, records_per_label=2)
except CognateError as error:
    print(error)
"""


@pytest.mark.slow
def test_without_a_compiler_compile_is_refused_in_one_line(data: Path, tiny_model: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", COMPILED, tiny_model, data / "train.jsonl", data / "out"],
        env={**os.environ, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(data / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "compile needs a C++ compiler" in finished.stdout
    assert not (data / "out").exists()


@pytest.mark.slow
def test_a_compiled_model_comes_to_the_same_weights(
    data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Packed, the dice of dropout would fall otherwise.
    monkeypatch.setattr("trainer.losses.is_packable", lambda _: False)
    if shutil.which("g++") is None:
        pytest.skip("there is no C++ compiler")
    options = {"epochs": 1, "queries": None, "index": None}
    plain = weights(fit(data, tiny_model, out=tmp_path / "plain", **options).checkpoint)
    compiled = weights(fit(data, tiny_model, out=tmp_path / "compiled", compile=True, **options).checkpoint)
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-3) for name in plain)


@pytest.mark.gpu
def test_fp16_trains_on_a_gpu(data: Path, tiny_model: Path) -> None:
    before = weights(tiny_model)
    after = weights(fit(data, tiny_model, precision="fp16").checkpoint)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
