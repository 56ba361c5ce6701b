"""Opens an index wherever it is kept."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cognate.devices import IndexDevice
from cognate.errors import CognateError
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.searchable import Searchable, index_location
from cognate.updates import IndexUpdates
from cognate.updates import open_index as open_folder

if TYPE_CHECKING:
    from cognate.milvus.index import MilvusIndex
    from cognate.milvus.updates import MilvusUpdates


def open_index(
    location: str | Path | MilvusLocation,
    *,
    fingerprint: str | None = None,
    device: IndexDevice = "auto",
    milvus: MilvusOptions | None = None,
) -> Searchable:
    """Open an index, in a folder with the updates that it has, or in Milvus.

    Args:
        location: A folder, or as ``MilvusLocation.parse`` takes it.
        fingerprint: As ``Index`` has it.
        device: As ``Index`` has it; of no concern to Milvus.
        milvus: How to talk to Milvus; None for what the environment says.

    Raises:
        CognateError: As ``cognate.updates.open_index`` and ``MilvusIndex``.
    """
    place = index_location(location)
    if not isinstance(place, MilvusLocation):
        return open_folder(place, fingerprint=fingerprint, device=device)
    options = milvus or MilvusOptions.from_environment(os.environ)
    return open_milvus(place, fingerprint=fingerprint, milvus=options)[0]


def open_updates(
    location: str | Path | MilvusLocation,
    *,
    fingerprint: str | None = None,
    milvus: MilvusOptions | None = None,
) -> "IndexUpdates | MilvusUpdates":
    """Open an index to update it.

    Args:
        location: As of ``open_index``.
        fingerprint: As ``Index`` has it.
        milvus: As of ``open_index``.

    Raises:
        CognateError: As ``IndexUpdates`` and ``MilvusIndex``.
    """
    place = index_location(location)
    if not isinstance(place, MilvusLocation):
        return IndexUpdates(place, fingerprint=fingerprint, device="cpu")
    options = milvus or MilvusOptions.from_environment(os.environ)
    return open_milvus(place, fingerprint=fingerprint, milvus=options)[1]


def open_milvus(
    location: MilvusLocation, *, fingerprint: str | None, milvus: MilvusOptions
) -> "tuple[MilvusIndex, MilvusUpdates]":
    """Open an index in Milvus, and what updates it.

    Raises:
        CognateError: As ``MilvusIndex``, or pymilvus is not installed.
    """
    require_milvus()
    from cognate.milvus.index import MilvusIndex
    from cognate.milvus.updates import MilvusUpdates

    index = MilvusIndex(location, fingerprint=fingerprint, options=milvus)
    return index, MilvusUpdates(index)


def stands_for(location: MilvusLocation, index: Searchable) -> bool:
    """Whether an open index is what a location in Milvus stands for now; its records are counted again then.

    Raises:
        CognateError: Milvus does not answer.
    """
    if not isinstance(index.location, MilvusLocation) or not location.is_beside(index.location):
        return False
    from cognate.milvus.index import MilvusIndex

    if not isinstance(index, MilvusIndex):
        return False
    target = index.connection.target_of(location.collection) or location.collection
    if target != index.collection:
        return False
    index.refresh()
    return True


def require_milvus() -> None:
    """See that pymilvus is installed.

    Raises:
        CognateError: It is not.
    """
    try:
        import pymilvus  # noqa: F401
    except ImportError:
        raise CognateError("an index in Milvus needs pymilvus; pip install 'cognate[milvus]'") from None
