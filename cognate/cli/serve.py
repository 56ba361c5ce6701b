"""``cognate serve``."""

import typer


def serve() -> None:
    """x"""
