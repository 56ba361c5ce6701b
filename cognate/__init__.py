"""Cognate: train, export, index, serve and search text embeddings.

What is named here is imported when it is first used, so that ``import cognate`` is quick and the client
runs where faiss and onnxruntime are not installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cognate.client import AsyncClient, Client
    from cognate.encoder import Encoder
    from cognate.evaluation import evaluate
    from cognate.index import Index
    from cognate.records import Hit, Record
    from cognate.request_error import RequestError
    from cognate.wire import Combined, Like

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "Combined",
    "Encoder",
    "Hit",
    "Index",
    "Like",
    "Record",
    "RequestError",
    "__version__",
    "evaluate",
]

_MODULES = {
    "AsyncClient": "cognate.client",
    "Client": "cognate.client",
    "Combined": "cognate.wire",
    "Encoder": "cognate.encoder",
    "Hit": "cognate.records",
    "Index": "cognate.index",
    "Like": "cognate.wire",
    "Record": "cognate.records",
    "RequestError": "cognate.request_error",
    "evaluate": "cognate.evaluation",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("cognate")
    if name not in _MODULES:
        raise AttributeError(f"module 'cognate' has no attribute {name!r}")
    try:
        value: object = getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cognate"):
            raise
        raise ImportError(
            f"cognate.{name} needs {error.name}; install it with: pip install 'cognate[serve]'",
            name=error.name,
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
