"""From a checkpoint, a model name or a sentence-transformers folder to a bundle: ``export``.

``exporter.interchange`` makes bundles of other people's ONNX models, ``exporter.hub`` sends and fetches
them; neither needs torch, so ``export`` is imported when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.onnx_export import export

__all__ = ["export"]


def __getattr__(name: str) -> object:
    if name == "export":
        from exporter.onnx_export import export

        return export
    raise AttributeError(f"module 'exporter' has no attribute {name!r}")
