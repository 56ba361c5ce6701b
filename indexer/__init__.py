"""The batch job that turns records into an index: ``indexer.build``."""

from indexer.batch_job import OnDuplicate, Tally, build

__all__ = ["OnDuplicate", "Tally", "build"]
