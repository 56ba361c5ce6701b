"""What a job that builds an index in Milvus does otherwise than one that builds a folder."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from cognate.bundle import Bundle
from cognate.index import IndexManifest
from cognate.index_kinds import Layout
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.opening import require_milvus
from cognate.records import Record
from indexer.work_folder import WorkFolder

WRITING_SECONDS = 60.0
"""Least time for a call that writes: a server that is busy takes longer over it than over a search."""

CHUNK = 4096


@dataclass(frozen=True, slots=True)
class MilvusJob:
    """Where in Milvus an index shall be, and how.

    Attributes:
        location: Its alias.
        layout: What kind of index.
        force: Whether an alias that is there is switched.
    """

    location: MilvusLocation
    layout: Layout
    force: bool

    def check(self) -> None:
        """Refuse at the start what would be refused at the end.

        Raises:
            CognateError: Milvus is not there, has the index already, or takes no such kind.
        """
        require_milvus()
        from cognate.milvus.connection import MilvusConnection
        from cognate.milvus.publishing import check_alias, check_layout

        check_layout(self.layout)
        with closing(MilvusConnection(self.location, _options())) as connection:
            check_alias(connection, force=self.force)

    def checked(self, records: Iterator[Record]) -> Iterator[Record]:
        """Records, of which one that Milvus has no room for raises."""
        from cognate.milvus.publishing import check_record

        return map(check_record, records)

    def publish(self, work: WorkFolder, bundle: Bundle) -> IndexManifest:
        """Write all that a job has done into Milvus, and switch the alias to it.

        Raises:
            CognateError: Milvus is not there any more, or refuses it. The work is kept.
        """
        from cognate.milvus.connection import MilvusConnection
        from cognate.milvus.publishing import publish

        with closing(MilvusConnection(self.location, _options())) as connection:
            return publish(
                work.chunks(CHUNK),
                connection,
                bundle,
                self.layout,
                count=work.count - work.replaced,
                dimension=bundle.manifest.dimension,
                force=self.force,
                note=work.path / "milvus-collection",
            )


def _options() -> MilvusOptions:
    options = MilvusOptions.from_environment(os.environ)
    return replace(options, timeout=max(options.timeout, WRITING_SECONDS))
