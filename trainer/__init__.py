"""Fine-tuning: labelled records to a checkpoint. ``trainer.fit`` is the whole of it."""

from trainer.encoder import TorchEncoder, load_encoder
from trainer.fine_tuning import Progress, Run, fit
from trainer.options import TrainingOptions

__all__ = ["Progress", "Run", "TorchEncoder", "TrainingOptions", "fit", "load_encoder"]
