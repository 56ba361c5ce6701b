"""Several indexes of one bundle to one, without encoding anything."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from cognate.artifact import publishing
from cognate.errors import CognateError, FingerprintError
from cognate.index import Index, IndexManifest, IndexWriter
from cognate.index_kinds import Layout
from cognate.updates import check_no_updates, open_index
from indexer.batch_job import CHUNK, OnDuplicate


def merge(
    indexes: Sequence[str | Path],
    destination: str | Path,
    *,
    layout: Layout | None = None,
    on_duplicate: OnDuplicate = "refuse",
    force: bool = False,
) -> IndexManifest:
    """Put the records and vectors of several indexes into one, in the order given.

    Args:
        indexes: At least two, of one bundle.
        destination: The new index's folder.
        layout: What kind of index; None is flat.
        on_duplicate: What becomes of an id that two indexes have: "refuse" stops, "last" keeps the record of
            the last index that has it.
        force: Whether an index that is there is replaced.

    Returns:
        The manifest of the new index.

    Raises:
        CognateError: Fewer than two indexes, indexes of different bundles, an id that two have, or a
            destination that exists, cannot be written or has updates beside it.
    """
    if len(indexes) < 2:
        raise CognateError("there is nothing to merge; give at least two indexes")
    destination = Path(destination)
    check_no_updates(destination)
    with ExitStack() as stack:
        partial = stack.enter_context(publishing(destination, IndexManifest.KIND, force=force))
        opened = [stack.enter_context(closing(open_index(folder, device="cpu"))) for folder in indexes]
        first = opened[0]
        for other in opened[1:]:
            if other.manifest.fingerprint != first.manifest.fingerprint:
                raise FingerprintError(
                    f"{other.folder} has vectors of another bundle ({other.manifest.model}, fingerprint "
                    f"{other.manifest.fingerprint[:12]}) than {first.folder} ({first.manifest.model}, "
                    f"{first.manifest.fingerprint[:12]}); build one of them again with the other's bundle"
                )
        writer = stack.enter_context(IndexWriter(partial, first.dimension, layout))
        for position, index in enumerate(opened):
            _add(writer, index, opened[position + 1 :], on_duplicate)
        return writer.finish(first.manifest)


def _add(writer: IndexWriter, index: Index, later: Sequence[Index], on_duplicate: OnDuplicate) -> None:
    all_rows = index.all_rows()
    for start in range(0, len(all_rows), CHUNK):
        rows = all_rows[start : start + CHUNK].tolist()
        records = index.records(rows)
        ids = [record.id or "" for record in records]
        dropped: set[str] = set()
        for other in later:
            both = other.rows_of(ids)
            if both and on_duplicate == "refuse":
                identifier = next(each for each in ids if each in both)
                raise CognateError(
                    f"{index.folder} and {other.folder} both have a record with the id {identifier!r}; give "
                    "--on-duplicate last to keep that of the last index"
                )
            dropped |= both.keys()
        kept = [position for position, identifier in enumerate(ids) if identifier not in dropped]
        writer.add(
            [records[position] for position in kept], index.vectors([rows[position] for position in kept])
        )
