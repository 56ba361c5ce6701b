"""Cognate under the interfaces of other libraries; each module needs the extra of its name."""

from cognate.errors import CognateError


def read_only() -> CognateError:
    """Make the refusal of a change to an index."""
    return CognateError(
        "a Cognate index is not changed over the wire; build it from a record file with `cognate index build`"
    )
