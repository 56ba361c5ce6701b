"""The batch jobs that turn records into an index, and update one: ``indexer.build``, ``indexer.update``."""

from indexer.batch_job import build
from indexer.index_update import Updated, update

__all__ = ["Updated", "build", "update"]
