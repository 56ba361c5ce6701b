"""The wire contract: lint-clean, and the committed stubs are those that it gives."""

import filecmp
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_committed_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "proto/generate.py", tmp_path], check=True)
    made = sorted(path.name for path in (tmp_path / "cognate/v1").iterdir())
    assert sorted(path.name for path in (ROOT / "cognate/v1").glob("*_pb2*")) == made
    _, differing, missing = filecmp.cmpfiles(
        tmp_path / "cognate/v1", ROOT / "cognate/v1", made, shallow=False
    )
    assert not differing + missing, "run python proto/generate.py"


def test_the_contract_is_lint_clean() -> None:
    if shutil.which("npx") is None:
        pytest.skip("buf comes through npx, which is not there")
    finished = subprocess.run(
        ["npx", "--yes", "@bufbuild/buf@1", "lint"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_every_field_of_the_contract_is_explained() -> None:
    for path in (ROOT / "proto").rglob("*.proto"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.strip().endswith(";") and " = " in line and not line.startswith(("syntax", "import")):
                assert lines[number - 1].strip().startswith("//"), f"{path}:{number + 1}"
