"""An index job, beside the encoder alone: ``python benchmarks/index_job.py``.

Both encode the same texts, no two of them equal, in turns; the figures are medians over the rounds. The job's
time is all of it: opening the bundle, reading the records, its journal, and writing, checking and publishing
the index.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from encode import QUORA, SAMPLE
from index_data import read_texts

import exporter
import indexer
from cognate.encoder import Encoder


def main() -> None:
    """Measure, and print the rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=20_000, help="at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bundle", type=Path, help="default: MiniLM in fp32, exported for this run")
    options = parser.parse_args()
    texts = read_texts(QUORA if QUORA.exists() else SAMPLE, options.records)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = options.bundle or folder / "bundle"
        if options.bundle is None:
            exporter.export("minilm", bundle)
        lines = [json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(texts)]
        (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
        encoder = Encoder(bundle, bulk=True)
        encoder.encode(texts[:1000])
        alone, job = [], []
        for number in range(options.rounds):
            started = time.monotonic()
            encoder.encode(texts)
            alone.append(len(texts) / (time.monotonic() - started))
            started = time.monotonic()
            indexer.build(folder / "records.jsonl", bundle, folder / f"index-{number}")
            job.append(len(texts) / (time.monotonic() - started))
            print(f"encoder alone {alone[-1]:.0f} texts/s, job {job[-1]:.0f} records/s", flush=True)
    rates = f"encoder alone {np.median(alone):.0f} texts/s, job {np.median(job):.0f} records/s"
    print(f"{len(texts)} records: {rates}")
    ratios = np.divide(job, alone)
    spread = f"{min(ratios):.0%} to {max(ratios):.0%}"
    print(f"of the encoder's rate: {np.median(ratios):.0%} (wanted: 95 %), {spread}")


if __name__ == "__main__":
    main()
