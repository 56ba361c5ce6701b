"""The tables of docs/scale.md are what its script prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def scale(*options: str) -> str:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/scale.py", *options], capture_output=True, text=True, check=True
    ).stdout


def test_the_tables_of_the_page_are_those_of_the_script() -> None:
    assert scale() in (ROOT / "docs/scale.md").read_text(), "put python benchmarks/scale.py into the page"


def test_a_quicker_encoder_takes_less_and_a_price_is_what_it_costs() -> None:
    def encoding(*options: str) -> list[tuple[float, float]]:
        rows = scale(*options).split("\n\n")[1].splitlines()[2:]
        cells = [[cell.strip().replace(",", "") for cell in row.strip("|").split("|")] for row in rows]
        return [(float(row[1]), float(row[2])) for row in cells]

    slow = encoding("--texts-per-second", "100", "--machine-price", "1")
    quick = encoding("--texts-per-second", "1000", "--machine-price", "1")
    # 10 billion texts by 16 cores, of which two do 100 a second.
    assert slow[2][0] == 3472.2
    assert slow[2][1] == 3472.22
    assert quick[2][0] == 347.2
