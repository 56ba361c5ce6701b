"""What resuming a run needs, saved without pickle: tensors in safetensors, the rest in JSON."""

import json
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cognate.artifact import sync_tree
from cognate.errors import CognateError

TENSORS = "state.safetensors"
VALUES = "state.json"
STEP = re.compile(r"step-(\d+)")


class TrainingStates:
    """The training states of a run, each a folder named for its step, whole or absent."""

    def __init__(self, folder: Path, kept: int) -> None:
        """Keep the last ``kept`` ones in ``folder``."""
        self.folder = folder
        self.kept = kept

    def save(self, step: int, state: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Save a state, and remove those that are too old.

        Args:
            step: Steps done.
            state: Dicts, lists, tensors, strings, numbers, true, false and None.
            files: Texts to lie beside it, by file name.

        Raises:
            CognateError: The disk is full, or fails.
        """
        partial = self.folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            tensors: dict[str, Tensor] = {}
            (partial / VALUES).write_text(json.dumps(_pack(state, tensors)), encoding="utf-8")
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
            save_file(tensors, partial / TENSORS)
            sync_tree(partial)
            destination = self.folder / f"step-{step}"
            shutil.rmtree(destination, ignore_errors=True)
            partial.rename(destination)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            last = self.last()
            held = f"the last one, {last.name}, is whole" if last else "there is none before it"
            raise CognateError(
                f"the training state of step {step} could not be written to {self.folder} "
                f"({getattr(error, 'strerror', None) or error}); {held}: make room, then go on with --resume"
            ) from error
        for old in self._all()[: -self.kept]:
            shutil.rmtree(old)

    def last(self) -> Path | None:
        """The newest one; None where there is none."""
        return next(reversed(self._all()), None)

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load_state(folder: Path) -> dict[str, Any]:
    """Load what ``TrainingStates.save`` saved; its tensors on the CPU, its tuples as lists.

    Raises:
        CognateError: It is damaged.
    """
    try:
        values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        state = _unpack(values, load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CognateError(
            f"{folder} is damaged: {error}; remove it, and --resume goes on from the one before"
        ) from error
    assert isinstance(state, dict)  # noqa: S101 - What is saved is one.
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors out of a nested value, into ``tensors``, and make JSON of the rest."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # Pairs, for the keys of an optimizer's state are numbers.
        return {"pairs": [[key, _pack(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a training state cannot hold {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(each, tensors) for each in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpack(each, tensors) for key, each in value["pairs"]}
    return value


def random_state() -> dict[str, Any]:
    """The state of every random generator that training draws from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every random generator to what ``random_state`` gave, loaded or not."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.random.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.random.set_rng_state_all(state["cuda"])
