"""Write docs/command-line.md, the help of every command: ``python docs/generate.py``."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer.main

import cognate.cli

PAGE = Path(__file__).resolve().parent / "command-line.md"


def command_line() -> str:
    """The page, as it should be."""
    parts = ["# The command line\n\nWritten by `python docs/generate.py` from what `--help` prints.\n"]
    for path in _commands(typer.main.get_command(cognate.cli.app)):
        command = ["cognate", *path]
        shown = subprocess.run(
            [sys.executable, "-m", *command, "--help"],
            # A width of its own, and no colours, wherever it runs.
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.replace("python -m cognate", "cognate")
        body = "\n".join(line.rstrip() for line in shown.splitlines()).strip("\n")
        parts.append(f"## {' '.join(command)}\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


def _commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*path, name))


if __name__ == "__main__":
    PAGE.write_text(command_line(), encoding="utf-8")
