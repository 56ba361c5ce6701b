"""Small files to train on and to evaluate with."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts of ten labels to train on, and of five others to evaluate with."""
    verbs, things = ["reset", "open", "learn"], ["password", "door", "printer", "key", "lock"]
    groups = [[f"how do i {v} the {t}", f"{v} {t} ?", f"the {t} i {v}"] for v in verbs for t in things]
    files = {"train": [], "queries": [], "index": []}
    for label, texts in enumerate(groups):
        for position, text in enumerate(texts):
            part = "train" if label < 10 else "queries" if position == 0 else "index"
            files[part].append({"text": text, "label": f"label {label}"})
    for name, records in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path
