"""Fine-tuning: labelled records to a checkpoint. ``trainer.fit`` is the whole of it."""

from typing import TYPE_CHECKING, Any

from cognate.runs import RunFolder, get_run, list_runs
from trainer.options import TrainingOptions
from trainer.starting import expected_job, restart, start

if TYPE_CHECKING:
    from trainer.encoder import TorchEncoder, load_encoder
    from trainer.fine_tuning import Run, fit, resume
    from trainer.steps import Progress

__all__ = [
    "Progress",
    "Run",
    "RunFolder",
    "TorchEncoder",
    "TrainingOptions",
    "expected_job",
    "fit",
    "get_run",
    "list_runs",
    "load_encoder",
    "restart",
    "resume",
    "start",
]


def __getattr__(name: str) -> Any:
    """Import torch when it is needed: to look at runs, or to start one elsewhere, it is not."""
    if name in ("TorchEncoder", "load_encoder"):
        from trainer import encoder

        return getattr(encoder, name)
    if name == "Progress":
        from trainer.steps import Progress

        return Progress
    if name in ("Run", "fit", "resume"):
        from trainer import fine_tuning

        return getattr(fine_tuning, name)
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
