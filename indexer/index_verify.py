"""Whether an index holds the vectors that a bundle gives its texts."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cognate.devices import Device
from cognate.encoder import Encoder
from cognate.opening import open_index


@dataclass(frozen=True)
class Verified:
    """How near the vectors of an index are to those of its texts, encoded again.

    Attributes:
        samples: How many records were looked at.
        min_cosine: The smallest cosine between a record's two vectors; 1.0 where the index is empty.
        mean_cosine: Their mean.
        worst_id: The id of the record with the smallest one; None where the index is empty.
        device: Where they were encoded.
    """

    samples: int
    min_cosine: float
    mean_cosine: float
    worst_id: str | None
    device: str


def verify(
    index: str | Path, bundle: str | Path, *, samples: int = 1000, device: Device = "auto"
) -> Verified:
    """Check every file of an index, and encode samples of its records again.

    Args:
        index: The index's folder, or its location in Milvus.
        bundle: The bundle that it was built with.
        samples: How many records, spread evenly over the index; all, where it has fewer.
        device: Where to encode.

    Raises:
        ArtifactError: The index or the bundle is missing or damaged.
        FingerprintError: The index was built with another bundle.
    """
    encoder = Encoder(bundle, device=device, bulk=True)
    with closing(open_index(index, fingerprint=encoder.fingerprint, device="cpu")) as opened:
        rows = opened.sample_rows(samples)
        pairs = zip(rows, opened.records(rows), strict=True)
        found = [(row, record) for row, record in pairs if record is not None]
        if not found:
            return Verified(0, 1.0, 1.0, None, encoder.device)
        again = encoder.encode([record.text for _, record in found])
        cosines = (opened.vectors([row for row, _ in found]) * again).sum(axis=1)
        worst = int(np.argmin(cosines))
        return Verified(
            len(found), float(cosines[worst]), float(cosines.mean()), found[worst][1].id, encoder.device
        )
