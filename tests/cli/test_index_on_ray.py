"""``cognate index build --engine ray``: what it says, and what it refuses."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexer.batch_job import work_folder_of
from tests.indexer.test_batch_job import write
from tests.indexer.test_resume import CHUNK, records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray-address", "PORT"), "no Ray cluster answers at 127.0.0.1:.*: Connection refused; start one"),
        (("--ray-address", "ray://head"), "'ray://head' is no address of a Ray cluster; give auto, or"),
        (("--device", "cpu", "--worker-gpus", "0.5"), "workers that encode on the CPU need no GPU"),
    ],
)
def test_what_cannot_be_is_one_line(
    cognate: Callable[..., Any],
    tiny_bundle: Path,
    tmp_path: Path,
    closed_port: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    source = write(tmp_path / "records.jsonl", records(10))
    given = [closed_port if option == "PORT" else option for option in options]
    refused = cognate(
        "index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "i", "--engine", "ray", *given
    )
    assert re.search(message, refused.check_one_line_error())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl"]


def test_options_of_the_cluster_without_the_engine_are_refused(
    cognate: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "records.jsonl", records(10))
    refused = cognate(
        "index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "i", "--workers", 2
    )
    assert "are for --engine ray" in refused.check_one_line_error()


def test_a_job_that_is_stopped_leaves_no_process_and_what_was_done(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", records(100 * CHUNK))
    # Smaller chunks, and a line for each.
    program = (
        "import cognate.cli, cognate.cli.terminal, indexer.batch_job; "
        f"cognate.cli.terminal.LINE_EVERY_S = 0; indexer.batch_job.CHUNK = {CHUNK}; cognate.cli.main()"
    )
    command = ["index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "index"]
    job = subprocess.Popen(
        [sys.executable, "-c", program, *command, "--engine", "ray", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stderr
    for line in job.stderr:
        done = re.match(r"([\d,]+) of about", line)
        if done and int(done[1].replace(",", "")) > 8 * CHUNK:
            break
    listed = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True)
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate()
    assert (job.returncode, out) == (128 + signal.SIGTERM, ""), err
    assert "interrupted: nothing was left half-written" in err
    assert "records are done and kept" in err
    assert not [pid for pid in listed.stdout.split() if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "index").exists()
    assert work_folder_of(tmp_path / "index").exists()
