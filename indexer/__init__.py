"""The batch jobs that turn records into an index (``indexer.build``), update one, or take whole indexes."""

from indexer.batch_job import OnDuplicate, Tally, build
from indexer.chunk_encoding import Cluster
from indexer.index_export import export
from indexer.index_merge import merge
from indexer.index_update import Updated, update
from indexer.index_verify import Verified, verify
from indexer.sources import Source, open_source
from indexer.sql import sql_source

__all__ = [
    "Cluster",
    "OnDuplicate",
    "Source",
    "Tally",
    "Updated",
    "Verified",
    "build",
    "export",
    "merge",
    "open_source",
    "sql_source",
    "update",
    "verify",
]
