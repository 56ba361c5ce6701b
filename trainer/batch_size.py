"""The largest batch that fits the memory, found by trying."""

import gc
from collections.abc import Callable

import psutil
import torch
from torch import nn

from trainer.memory import free_memory, peak, reset_peak

SHARE = 0.85
"""Of the memory that is free; batches vary, and others want some too."""

CLOSE_ENOUGH = 8
"""The search ends when what is known to fit is within an eighth of what is not."""


def largest(fits: Callable[[int], bool], *, least: int, most: int, multiple: int) -> int | None:
    """Search for the largest size that fits: doubling first, then halving the gap.

    Args:
        fits: Whether a size does; where one does, every smaller one is taken to.
        least: The first one tried; a multiple of ``multiple``.
        most: None larger is tried.
        multiple: What a size must be a multiple of.

    Returns:
        A size that fits, within an eighth of the largest that does; None where ``least`` does not.
    """
    if not fits(least):
        return None
    good, bad = least, most // multiple * multiple + multiple
    while bad - good > max(multiple, good // CLOSE_ENOUGH):
        middle = min(2 * good, (good + bad) // 2) // multiple * multiple
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def largest_batch(
    step: Callable[[int], None], model: nn.Module, *, least: int, most: int, multiple: int
) -> int | None:
    """Find the largest batch whose step fits the memory of the model's device.

    On CUDA a step that does not fit fails, and that is the trial. On a CPU it would end the process, or
    others: there a larger batch is tried only if what the last one took, in proportion, is free.

    Args:
        step: Computes the gradients of a batch of so many records, the largest that the data has.
        model: What is trained.
        least: Records of the smallest batch.
        most: Records of the largest.
        multiple: What their number must be a multiple of.

    Returns:
        Its records; None where the smallest one does not fit.
    """
    device = next(model.parameters()).device
    # What an optimizer such as Adam will keep; written to, for memory that is not is not taken.
    kept = [torch.ones_like(weights) for weights in model.parameters() if weights.requires_grad]
    kept += [torch.ones_like(weights) for weights in kept]
    fits = _Gpu(step) if device.type == "cuda" else _Cpu(step)
    found = largest(fits, least=least, most=max(least, most), multiple=multiple)
    del kept
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


class _Gpu:
    """Whether a batch fits a GPU: whether its step fails."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step

    def __call__(self, size: int) -> bool:
        try:
            self._step(size)
        except torch.OutOfMemoryError:
            # What the failed step holds is let go only outside of this block.
            failed = True
        else:
            failed = False
        gc.collect()
        torch.cuda.empty_cache()
        return not failed


class _Cpu:
    """Whether a batch fits the memory of a CPU: whether what it will take, by the last one tried, is free."""

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step
        self._before = psutil.Process().memory_info().rss
        self._free = SHARE * free_memory()
        self._taken: tuple[int, int] | None = None

    def __call__(self, size: int) -> bool:
        if self._taken is not None and self._taken[1] * size / self._taken[0] > self._free:
            return False
        reset_peak()
        self._step(size)
        taken = peak() - self._before
        # A smaller one after a larger one tells nothing new.
        if self._taken is None or size > self._taken[0]:
            self._taken = size, taken
        return bool(taken <= self._free)
