"""The batch job that turns records into an index: ``indexer.build``, and what is done to whole indexes."""

from indexer.batch_job import OnDuplicate, Tally, build
from indexer.sources import Source, open_source
from indexer.sql import sql_source

__all__ = ["OnDuplicate", "Source", "Tally", "build", "open_source", "sql_source"]
