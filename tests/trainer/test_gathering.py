"""Two processes that share a batch have the loss and the gradients of one that has it whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trainer

PROGRAM = """
import sys

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from trainer.losses import MetricLoss, make_loss, make_miner

model_folder, out = sys.argv[1:]
model = SentenceTransformer(model_folder, device="cpu").eval()
texts = [f"{'how do i reset the door ' * (1 + n % 5)}{n}" for n in range(41)]
labels = torch.arange(len(texts)) // 4
processes, wrapped, part = 1, model, slice(None)
if distributed.is_torchelastic_launched():
    distributed.init_process_group("gloo")
    processes = distributed.get_world_size()
    # Several passes before one backward must not write to what the first one saved.
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    part = slice(distributed.get_rank(), None, processes)
loss = MetricLoss(
    wrapped,
    make_loss("TripletMarginLoss", {"margin": 0.2}, labels=11, dimension=32),
    make_miner("TripletMarginMiner", {"margin": 0.2, "type_of_triplets": "semihard"}),
)
features = model.tokenize(texts[part])
value = loss([dict(features)], labels[part])
value.backward()
tensors = {name: weights.grad for name, weights in model.named_parameters() if weights.grad is not None}
rank = distributed.get_rank() if processes > 1 else 0
save_file({**tensors, "loss": value.detach(), "mined": torch.tensor(loss.mined)}, f"{out}-{processes}-{rank}")
if processes > 1:
    distributed.destroy_process_group()
"""


def test_loss_and_gradients_of_two_processes_are_those_of_one(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(trainer.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "program.py"), str(tiny_model), str(tmp_path / "out")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for launcher in ([], torchrun):
        finished = subprocess.run(
            [sys.executable, *launcher, *arguments], env=environment, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
    whole, first, second = (load_file(tmp_path / f"out-{name}") for name in ("1-0", "2-0", "2-1"))
    assert whole["mined"] > 0
    assert whole["mined"] == first["mined"] == second["mined"]
    assert whole["loss"].item() > 0
    for part in (first, second):
        assert part["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-5)
        assert part.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(part[name], gradient, atol=1e-5, rtol=1e-4), name


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with no dropout, of which each process would draw its own."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_of_two_processes_is_that_of_one(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(trainer.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = {
        "queries": data / "queries.jsonl",
        "index": data / "index.jsonl",
        "runs_dir": data / "runs",
        **{"epochs": 2, "batch_size": 8, "records_per_label": 2, "learning_rate": 1e-3, "k": 5},
        **{"mine_negatives": True, "keep_best": True, "checkpoint_steps": 1},
    }
    trainer.fit(str(model), data / "train.jsonl", run="one", **given)
    two = trainer.start(str(model), data / "train.jsonl", run="two", processes=2, **given)
    for _ in two.stream_logs():
        pass
    assert two.status().state == "finished", two.logs()
    one = trainer.get_run("one", data / "runs")
    assert len(two.metrics()) == len(one.metrics())
    for line, other in zip(one.metrics(), two.metrics(), strict=True):
        if line["kind"] == "step":
            assert other["loss"] == pytest.approx(line["loss"], abs=1e-4)
        else:
            assert other["metrics"] == pytest.approx(line["metrics"], abs=1e-4)
    assert one.checkpoint
    assert two.checkpoint
    weights = [load_file(run.checkpoint / "model.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    # Adam makes much of the smallest gradients, so of a few weights rounding decides the direction.
    far = [(weights[0][name] - weights[1][name]).abs().mean().item() for name in weights[0]]
    assert max(far) < 1e-3
    assert (two.folder / "report.html").is_file()


def test_data_without_labels_is_for_one_process(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(trainer.__file__).parents[1]))
    (data / "pairs.jsonl").write_text('{"query": "a", "passage": "b"}\n{"query": "c", "passage": "d"}\n')
    run = trainer.start(str(model), data / "pairs.jsonl", run="pairs", runs_dir=data / "runs", processes=2)
    for _ in run.stream_logs():
        pass
    assert run.status().state == "failed"
    assert "labelled records only" in (run.status().error or "")
