"""From a checkpoint, a model name or a sentence-transformers folder to a bundle: ``export``."""

from exporter.onnx_export import export

__all__ = ["export"]
