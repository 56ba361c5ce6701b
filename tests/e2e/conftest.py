"""Real processes: the command line and the server as a user starts them."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COGNATE = [sys.executable, "-m", "cognate"]


def run(*arguments: object, cwd: Path | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run a command to its end; pytest's timeout, the test's own, bounds it."""
    finished = subprocess.run(
        [*COGNATE, *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True, check=False
    )
    return subprocess.CompletedProcess(
        finished.args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
    )


@contextlib.contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server on a free port, and give its process and its HOST:PORT once it is ready."""
    command = [*COGNATE, "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            assert server.stderr is not None
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"serving on \S+:(\d+)", line):
                    break
            else:
                raise AssertionError("".join(lines))
            yield server, f"localhost:{found[1]}"
        finally:
            server.terminate()
            server.communicate(timeout=60)


@pytest.fixture(scope="session")
def sample_index(minilm_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the sample's records, by MiniLM as published."""
    import indexer

    folder = tmp_path_factory.mktemp("indexes") / "sample"
    sample = Path(__file__).resolve().parents[2] / "cognate/sample/index.jsonl"
    indexer.build(sample, minilm_bundle, folder)
    return folder
