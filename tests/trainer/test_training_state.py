"""Training states: what is loaded is what was saved, and what cannot be saved spoils nothing."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cognate.errors import CognateError
from trainer.training_state import TrainingStates, load_state, random_state, set_random_state


def test_a_state_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(3),
        "b": {0: [1, 2.5, None, True], "x": "text"},
        "empty": {},
        "none": torch.zeros(0),
    }
    states = TrainingStates(tmp_path, 2)
    states.save(7, state, {"more.json": "{}"})
    loaded = load_state(tmp_path / "step-7")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == state["b"]
    assert loaded["empty"] == {}
    assert loaded["none"].shape == (0,)


def test_the_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    TrainingStates(tmp_path, 1).save(1, {"random": random_state()}, {})
    drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
    set_random_state(load_state(tmp_path / "step-1")["random"])
    assert drawn == [random.random(), np.random.rand(), torch.rand(1).item()]


def test_a_full_disk_leaves_the_state_before_and_says_so(small_disk: Path) -> None:
    states = TrainingStates(small_disk, 2)
    states.save(1, {"weights": torch.zeros(100)}, {})
    with pytest.raises(
        CognateError, match=r"step 2 could not be written .*; the last one, step-1, is whole: make"
    ):
        states.save(2, {"weights": torch.zeros(100_000)}, {})
    assert [path.name for path in small_disk.iterdir()] == ["step-1"]
    assert load_state(states.last())["weights"].shape == (100,)


def test_a_damaged_state_is_one_line(tmp_path: Path) -> None:
    TrainingStates(tmp_path, 1).save(1, {"weights": torch.zeros(100)}, {})
    file = tmp_path / "step-1/state.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CognateError, match="step-1 is damaged.*remove it"):
        load_state(tmp_path / "step-1")
