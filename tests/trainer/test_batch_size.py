"""``batch_size=auto``: as many records as fit, found by trying."""

import json
import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import trainer
from cognate.errors import CognateError
from trainer import batch_size
from trainer.batch_size import largest, largest_batch
from trainer.memory import free_memory

OPTIONS = {"epochs": 1, "batch_size": "auto", "records_per_label": 2}


@given(st.integers(0, 3000), st.integers(2, 5000), st.sampled_from([2, 3, 4]))
def test_the_search_ends_within_an_eighth_of_the_largest_that_fits(
    limit: int, most: int, multiple: int
) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    most = max(most, 2 * multiple)
    found = largest(fits, least=2 * multiple, most=most, multiple=multiple)
    assert all(size % multiple == 0 and size <= most for size in tried)
    if limit < 2 * multiple:
        assert found is None
        return
    best = min(limit, most) // multiple * multiple
    assert found is not None
    assert found <= best <= found + max(multiple, found // 8) + multiple
    assert len(tried) <= 20


def test_a_batch_that_would_take_more_than_is_free_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda: 200 * 2**20)
    tried: list[int] = []

    def step(size: int) -> None:
        tried.append(size)
        torch.ones(size, 2**18)  # A MiB each.

    found = largest_batch(step, nn.Linear(2, 2), least=16, most=10_000, multiple=2)
    assert found is not None
    assert 64 <= found <= 180
    assert max(tried) <= 180
    assert largest_batch(step, nn.Linear(2, 2), least=512, most=10_000, multiple=2) is None


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_the_control_group_leaves(version: int, tmp_path: Path) -> None:
    names = {
        1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    for name, value in zip(names[version], ("1000000", "400000"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value + "\n")
    assert free_memory(tmp_path) == 600_000
    (tmp_path / names[version][0]).write_text("max\n")
    assert free_memory(tmp_path) > 600_000


def test_a_run_is_trained_with_the_batch_that_was_found_and_goes_on_with_it(
    data: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Twelve of each label, so that a tenth of all is more than the smallest batch.
    lines = (data / "train.jsonl").read_text().splitlines()
    copies = [json.loads(line) for line in lines for _ in range(4)]
    for number, record in enumerate(copies):
        record["text"] += f" {number}"
    (data / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in copies))
    places = {"run": "a", "runs_dir": data / "runs"}
    options = {**places, **OPTIONS, "checkpoint_steps": 1}

    def cut(progress: trainer.Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    caplog.set_level(logging.INFO, logger="trainer")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(str(tiny_model), data / "train.jsonl", on_progress=cut, **options)
    assert "batch_size auto: 12, of 12 at most" in caplog.text
    caplog.clear()
    run = trainer.resume("a", runs_dir=data / "runs")
    assert "batch_size auto" not in caplog.text
    training = json.loads((run.checkpoint / "training.json").read_text())
    assert training["options"]["batch_size"] == 12
    assert "batch_size=12" in (data / "runs/a/report.html").read_text()


def test_several_processes_need_a_number(data: Path, tiny_model: Path) -> None:
    with pytest.raises(CognateError, match="found by one process; give a number"):
        trainer.start(
            str(tiny_model), data / "train.jsonl", run="a", runs_dir=data / "runs", processes=2, **OPTIONS
        )
    assert not (data / "runs").exists()


@pytest.mark.gpu
def test_a_gpu_is_filled_and_not_more() -> None:
    free, _ = torch.cuda.mem_get_info()

    def step(size: int) -> None:
        torch.ones(size, free // 4 // 1000, device="cuda")

    found = largest_batch(step, nn.Linear(2, 2).cuda(), least=16, most=10_000, multiple=2)
    assert found is not None
    assert 700 <= found <= 1000
