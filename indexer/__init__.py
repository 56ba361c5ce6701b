"""The batch job that turns records into an index: ``indexer.build``."""

from indexer.batch_job import build

__all__ = ["build"]
