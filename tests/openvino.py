"""Whether OpenVINO runs here: its plugin has wheels for some systems, and takes Intel's processors alone."""

import contextlib

import onnxruntime
import pytest

from cognate.errors import CognateError
from cognate.providers import PROVIDERS, plugin_devices


def _devices() -> list[onnxruntime.OrtEpDevice]:
    with contextlib.suppress(CognateError, ImportError):
        return plugin_devices(PROVIDERS["openvino"])
    return []


has_openvino = pytest.mark.skipif(
    not _devices(), reason="onnxruntime-ep-openvino has no wheel here, or does not take this processor"
)
