"""A torch model as an encoder that can be evaluated."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from cognate import models
from cognate.bundle import InputType
from cognate.errors import CognateError

ENCODE_BATCH = 64


class TorchEncoder:
    """Gives the embeddings of a sentence-transformers model, at unit length.

    Attributes:
        model: The model.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        """Take a model."""
        self.model = model

    def encode(self, texts: Sequence[str], input_type: InputType = "passage") -> NDArray[np.float32]:
        """Encode texts to float32 rows of unit length, shape (texts, dimension)."""
        names = ("query",) if input_type == "query" else ("passage", "document")
        prompt = next((self.model.prompts[name] for name in names if self.model.prompts.get(name)), None)
        vectors = self.model.encode(
            list(texts),
            prompt=prompt,
            batch_size=ENCODE_BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, np.float32)


def load_encoder(name: str, *, device: Literal["auto", "cpu", "cuda"] = "auto") -> TorchEncoder:
    """Load a model by name, folder or Hugging Face id.

    Args:
        name: The model's.
        device: Where it runs; "auto" takes CUDA, or what else torch has, where there is one.

    Raises:
        CognateError: CUDA was asked for, and torch has none.
        ModelError: There is no such model, or it cannot be loaded.
        ArtifactError: A checkpoint of ours is damaged.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise CognateError(
            "device cuda was asked for, but this torch sees no CUDA device; install a torch for CUDA and its "
            "driver, or use --device cpu"
        )
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return TorchEncoder(
        models.load(
            name,
            lambda source, local: SentenceTransformer(
                source,
                device=None if device == "auto" else device,
                trust_remote_code=False,
                local_files_only=local,
                model_kwargs={"use_safetensors": True},
            ),
        )
    )
