"""The devices that a user can name; what they are is in ``providers`` and ``gpu_index``."""

from typing import Literal, get_args

from cognate.errors import CognateError

Device = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml", "directml"]
"""Where a model runs."""

IndexDevice = Literal["auto", "cpu", "cuda"]
"""Where an index is searched."""

IndexGpus = Literal["one", "replicas", "shards"]
"""The GPUs that an index is on: the first, all with a copy each, or all with a part each."""


def check_device(device: str, devices: object = Device) -> None:
    """Refuse a device that is none of those of a Literal.

    Raises:
        CognateError: It is unknown.
    """
    if device not in get_args(devices):
        raise CognateError(f"there is no device {device!r}; choose one of {', '.join(get_args(devices))}")


def index_device(device: Device) -> IndexDevice:
    """Where the indexes of a model on this device are searched, unless something else is asked for."""
    if device in ("cuda", "tensorrt"):
        return "cuda"
    return "auto" if device == "auto" else "cpu"
