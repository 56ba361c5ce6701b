"""The dice of dropout on a CPU, thrown several at a time."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_LEVELS = 1 << 16


@contextlib.contextmanager
def quick_dropout() -> Iterator[None]:
    """Let torch draw its zeros and ones on the CPU from numpy's SFC64, whose seeds are torch's own numbers.

    For dropout, in attention too, torch draws each number by itself, in one thread: 5 ns a number, an eighth
    of the time of a step of MiniLM. So the same seed gives the same masks, and a random state that was saved
    goes on with the same ones, though they are not those of torch. A probability is met to within 2^-17.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # That there was such a function before is the point.
        warnings.filterwarnings("ignore", message=r"(?s).*[Oo]verriding a previously registered kernel")
        library.impl("bernoulli_.float", _bernoulli, "CPU")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def _bernoulli(tensor: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill a tensor with ones, of a probability, and zeros."""
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator).item()
    count = tensor.numel()
    drawn = np.random.SFC64(int(seed)).random_raw((count + 3) // 4).view(np.uint16)[:count]
    ones = torch.from_numpy(drawn < np.uint32(round(p * _LEVELS)))
    return tensor.copy_(ones.view(tensor.shape))
