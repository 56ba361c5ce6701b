"""Runs the command line in this process: as a terminal would, without the seconds torch takes to load."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cognate.cli import main


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    def check_one_line_error(self) -> str:
        """The sentence of a failure: one line on standard error, nothing on standard output, no traceback."""
        assert self.code == 1, self
        assert self.out == "", self
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def cognate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["cognate", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run
