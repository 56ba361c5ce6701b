"""Encode a file of records: python examples/bulk_encode.py RECORDS OUT.npy [HOST:PORT].

A few calls are in flight at a time, so that the server's batches stay full while answers travel.
"""

import sys

import numpy as np

from cognate import Client
from cognate.errors import CognateError
from cognate.records import read_records


def bulk_encode(records: str, out: str, target: str = "localhost:50051") -> None:
    """Write the embeddings of the records' texts, float32 (records, dimension), to an .npy file."""
    with Client(target) as client:
        blocks = client.encode_stream(record.text for record in read_records(records))
        vectors = np.concatenate(list(blocks))
    np.save(out, vectors)
    print(f"{out}: {len(vectors)} embeddings of {vectors.shape[1]} components")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        bulk_encode(*sys.argv[1:])
    except CognateError as error:
        sys.exit(f"error: {error}")
