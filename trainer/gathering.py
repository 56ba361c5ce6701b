"""The batch of several processes, put together before it is mined."""

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather


def gathered(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Join the embeddings and labels of all processes, so that each one mines and weighs the whole batch.

    Each process then has the whole loss, and its gradient by every embedding; what comes back to an
    embedding is the sum over the processes. With the mean that DistributedDataParallel takes of the weights'
    gradients, they are those of one process with the whole batch.

    Args:
        embeddings: Of this process; float, shape (texts, dimension). Processes may have more or fewer texts.
        labels: int64, shape (texts,).

    Returns:
        Those of all processes, in their order; the ones given where there is one process.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return embeddings, labels
    sizes = [
        torch.zeros(1, dtype=torch.int64, device=labels.device) for _ in range(distributed.get_world_size())
    ]
    distributed.all_gather(sizes, torch.tensor([len(labels)], device=labels.device))
    counts = [int(size) for size in sizes]
    # What is gathered must be of one shape.
    missing = max(counts) - len(labels)
    padded = torch.cat([labels, labels.new_zeros(missing)])
    all_labels = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(all_labels, padded)
    filled = torch.cat([embeddings, embeddings.new_zeros(missing, embeddings.shape[1])])
    parts = all_gather(filled)  # type: ignore[no-untyped-call]
    return (
        torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]),
        torch.cat([part[:count] for part, count in zip(all_labels, counts, strict=True)]),
    )
