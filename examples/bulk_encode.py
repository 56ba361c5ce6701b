"""Encode a file of records: python examples/bulk_encode.py RECORDS OUT.npy [HOST:PORT].

A few calls are in flight at a time, so that the server's batches stay full while answers travel.
"""

import asyncio
import sys

import numpy as np

from cognate import AsyncClient
from cognate.errors import CognateError
from cognate.records import read_records

TEXTS_PER_CALL = 32
CALLS_IN_FLIGHT = 4


async def bulk_encode(records: str, out: str, target: str = "localhost:50051") -> None:
    """Write the embeddings of the records' texts, float32 (records, dimension), to an .npy file."""
    texts = [record.text for record in read_records(records)]
    async with AsyncClient(target, timeout=60) as client:
        dimension = (await client.info()).model.dimension
        vectors = np.empty((len(texts), dimension), np.float32)
        starts = iter(range(0, len(texts), TEXTS_PER_CALL))

        async def work() -> None:
            for start in starts:
                answer = await client.encode(texts[start : start + TEXTS_PER_CALL])
                vectors[start : start + len(answer.vectors)] = answer.vectors

        await asyncio.gather(*(work() for _ in range(CALLS_IN_FLIGHT)))
    np.save(out, vectors)
    print(f"{out}: {len(texts)} embeddings of {dimension} components")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        asyncio.run(bulk_encode(*sys.argv[1:]))
    except CognateError as error:
        sys.exit(f"error: {error}")
