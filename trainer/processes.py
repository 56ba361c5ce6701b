"""The processes that train one model together: torchrun starts them, and the first one alone writes."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from cognate.metrics import METRICS


def is_first() -> bool:
    """Whether this process writes, and measures: the first of several, or the only one."""
    return share()[0] == 0


def share() -> tuple[int, int]:
    """The number of this process, from 0 on, and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def agreed_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the first process, in every one: what they decide, all must decide alike."""
    if share()[1] == 1:
        return dict(metrics)
    values = torch.tensor([metrics.get(name, np.nan) for name in METRICS], dtype=torch.float64)
    told = zip(METRICS, _from_first(values).tolist(), strict=True)
    return {name: value for name, value in told if not np.isnan(value)}


def agreed_table(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """The table of the first process, in every one; int64, of the same shape in all."""
    if share()[1] == 1:
        return table
    agreed: NDArray[np.int64] = _from_first(torch.from_numpy(table)).numpy()
    return agreed


def agreed_flag(flag: bool) -> bool:
    """Whether it holds in the first process."""
    return flag if share()[1] == 1 else bool(_from_first(torch.tensor([flag])).item())


def _from_first(tensor: Tensor) -> Tensor:
    on_gpu = distributed.get_backend() == "nccl"
    moved = tensor.to("cuda") if on_gpu else tensor.clone()
    distributed.broadcast(moved, 0)
    return moved.cpu()
