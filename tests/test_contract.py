"""The wire contract: lint-clean, and the committed stubs are those that it gives."""

import ast
import filecmp
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from cognate.index_kinds import Kind

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


def test_the_contract_tells_every_reason_of_a_refusal() -> None:
    def reasons(tree: ast.AST) -> set[str]:
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        return {each for each in strings if isinstance(each, str) and re.fullmatch("[A-Z_]+", each)}

    sent = reasons(ast.parse((ROOT / "serving/refusal.py").read_text()))
    for path in (ROOT / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "bad_field":
                sent |= reasons(node)
    contract = (ROOT / "proto/cognate/v1/embedding.proto").read_text()
    told = re.findall(r"^//   ([A-Z_]+(?:, [A-Z_]+)*)  ", contract, re.MULTILINE)
    assert sorted(", ".join(told).split(", ")) == sorted(sent)


def test_every_kind_of_index_is_in_the_contract() -> None:
    contract = (ROOT / "proto/cognate/v1/index.proto").read_text()
    assert all(f'"{kind}"' in contract for kind in get_args(Kind) if kind != "auto")


def test_every_field_of_the_contract_is_explained() -> None:
    for path in (ROOT / "proto").rglob("*.proto"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.strip().endswith(";") and " = " in line and not line.startswith(("syntax", "import")):
                assert lines[number - 1].strip().startswith("//"), f"{path}:{number + 1}"
