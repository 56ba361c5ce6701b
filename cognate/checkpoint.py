"""The checkpoint artifact: an ordinary sentence-transformers folder, with what it was trained by."""

from typing import ClassVar

from cognate.artifact import Manifest

TRAINING = "training.json"


class CheckpointManifest(Manifest):
    """A checkpoint's manifest.

    Attributes:
        model: The name of the model that training started from.
    """

    KIND: ClassVar[str] = "checkpoint"
    FORMAT_VERSION: ClassVar[int] = 1
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "sentence-transformers",
        "pytorch-metric-learning",
    )

    model: str
