"""The option of the commands that encode."""

from typing import Annotated

import typer

from cognate.devices import Device

EncodeDevice = Annotated[
    Device, typer.Option(help="Where to encode: auto is cuda where it starts, else cpu.")
]
