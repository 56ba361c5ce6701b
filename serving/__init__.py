"""The gRPC service: ``run(Settings.load(…))``, or in a program of one's own ``async with Server(…)``."""

from serving.server import Server, address_of, exposure, run
from serving.settings import Settings, misspelt
from serving.workers import run_workers

__all__ = ["Server", "Settings", "address_of", "exposure", "misspelt", "run", "run_workers"]
