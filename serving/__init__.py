"""The gRPC service: ``run(Settings.load(…))``, or in a program of one's own ``async with Server(…)``."""

from serving.server import Server, run
from serving.settings import Settings

__all__ = ["Server", "Settings", "run"]
