"""``cognate demo``: the whole pipeline, improved by training, and a server left up until Ctrl-C."""

import re
import signal
import socket
import subprocess
from pathlib import Path

from tests.e2e.conftest import COGNATE, run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_demo_trains_exports_indexes_serves_and_searches(tmp_path: Path) -> None:
    port = free_port()
    command = [*COGNATE, "demo", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            lines = []
            for line in demo.stdout:
                lines.append(line)
                if "Ctrl-C stops it" in line:
                    break
            text = "".join(lines)
            before, after = map(
                float,
                re.search(r"average_precision\D+([\d.]+)\D+([\d.]+)", text).groups(),  # type: ignore[union-attr]
            )
            assert before < 0.85
            assert after >= before + 0.05
            assert text.count("$ cognate ") == 5
            answer = run(
                "search", "the nanny says no although my stripe is fine", "--target", f"localhost:{port}"
            )
            assert answer.returncode == 0, answer.stderr
        finally:
            demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=60) == 0
    with socket.socket() as probe:
        # Nothing listens any more.
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    # The commands it names work as they stand.
    for line in re.findall(r"\$ cognate (.*)", text)[1:3]:
        assert run(*line.split(), cwd=tmp_path).returncode == 0


def test_a_taken_port_is_told_before_the_work(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finished = run("demo", "--once", "--port", port, cwd=tmp_path)
    assert finished.returncode == 1
    assert f"port {port} is in use" in finished.stderr
    assert list(tmp_path.iterdir()) == []
