"""An index that is kept in Milvus, searched as one in a folder is."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from cognate.errors import ArtifactError, UnavailableError, UnsupportedError
from cognate.filters import Filter, check
from cognate.index import IndexManifest
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.expressions import to_expression
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.narrowing import Narrowing, narrowed_hits
from cognate.records import Accuracy, Hit, Record
from cognate.searchable import check_fingerprint, check_search

MANIFEST = "cognate.manifest"
"""The property of a collection that holds its manifest, as JSON."""

FINGERPRINT = "cognate.fingerprint"
PREVIOUS = "cognate.previous"
"""The property with the collection that its alias stood for before, which is kept."""

MAX_HITS = 16384
"""Milvus gives no more for a query, and takes no more queries at once."""

SCORES = 64 * 1024
"""Hits that are asked for at once, of all queries."""

EF = {"fast": 64, "balanced": 256}
"""Candidates that a graph is searched with, at least; twice the hits asked for, where that is more."""


class MilvusIndex:
    """An open index in Milvus. For several threads, each of which waits for Milvus.

    An alias is looked up once: whatever it stands for later, this one answers from the version it opened.

    Attributes:
        manifest: What it says of itself.
        count: How many records it held when ``refresh`` was last called.
    """

    def __init__(
        self,
        location: MilvusLocation,
        *,
        fingerprint: str | None = None,
        options: MilvusOptions = MilvusOptions(),  # noqa: B008, for it is frozen
    ) -> None:
        """Open an index.

        Args:
            location: Of its alias, or of one version.
            fingerprint: As ``Index`` has it.
            options: How to talk to Milvus.

        Raises:
            UnavailableError: Milvus does not answer.
            ArtifactError: There is no such collection, or it is none of cognate's.
            FingerprintError: Its vectors are of another bundle.
            CognateError: Milvus refuses the token.
        """
        self.connection = MilvusConnection(location, options)
        try:
            self._location = location.of(
                self.connection.target_of(location.collection) or location.collection
            )
            self.collection = self._location.collection
            self.manifest, self._version = read_manifest(self.connection, self.collection)
            check_fingerprint(location, self.manifest, fingerprint)
            self.count = 0
            with self.connection.told():
                self.connection.client.load_collection(
                    self.collection, timeout=self.connection.options.timeout
                )
            self.refresh()
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    @property
    def location(self) -> MilvusLocation:
        """The version's own collection, whatever alias it was opened by."""
        return self._location

    @property
    def version(self) -> str:
        """What tells it from any other index: the first 12 digits of the sha256 of its manifest."""
        return self._version

    @property
    def dimension(self) -> int:
        """Components of a vector."""
        return self.manifest.dimension

    @property
    def device(self) -> str:
        """Milvus's own."""
        return "milvus"

    @property
    def remote(self) -> bool:
        """True: a search waits for Milvus."""
        return True

    def refresh(self) -> None:
        """Have Milvus load it, where it was restarted or let go of it, and count its records again.

        Raises:
            UnavailableError: Milvus does not answer, or has not loaded it yet.
        """
        with self.connection.told():
            # Not waited for: one that is restarted meanwhile has forgotten that it was asked.
            self.connection.client.load_collection(
                self.collection, timeout=self.connection.options.timeout, _async=True
            )
        self.count = self.connection.count(self.collection, self.connection.options.consistency)

    def search(
        self,
        vectors: NDArray[np.float32],
        top_k: int = 10,
        *,
        min_score: float | None = None,
        accuracy: Accuracy = "balanced",
        narrowing: Narrowing | None = None,
    ) -> list[list[Hit]]:
        """As ``Index.search``; hits of equal score are in the order of their ids."""
        return narrowed_hits(
            self, vectors, top_k, narrowing or Narrowing(), accuracy=accuracy, min_score=min_score
        )

    def search_rows(
        self,
        vectors: NDArray[np.float32],
        top_k: int,
        *,
        accuracy: Accuracy = "balanced",
        matching: str | None = None,
        stable: bool = False,
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[Any]]]:
        """As ``Index.search_rows``; a row is an id.

        Raises:
            UnsupportedError: It asks for more than Milvus can do.
            UnavailableError: Milvus does not answer.
        """
        check_search(vectors, top_k, accuracy, self.dimension)
        if top_k > MAX_HITS:
            raise UnsupportedError(
                "top_k", f"asks, with offset and exclude_ids, for {top_k} hits; Milvus gives up to {MAX_HITS}"
            )
        if self.manifest.kind != "flat" and (accuracy == "exact" or stable):
            raise UnsupportedError(
                "offset" if stable else "accuracy",
                f"needs an exact search, which Milvus has not for kind {self.manifest.kind}; build the index "
                "with --kind flat, or leave it out",
            )
        if not stable:
            return self._nearest(vectors, top_k, accuracy, matching)
        asked = top_k
        while True:
            asked = min(MAX_HITS, asked + max(1, asked - top_k))
            scores, rows = self._nearest(vectors, asked, accuracy, matching)
            # Of those that share the last score, some may be missing.
            settled = all(len(some) < asked or some[-1] < some[top_k - 1] for some in scores)
            if settled or asked == MAX_HITS:
                return [some[:top_k] for some in scores], [some[:top_k] for some in rows]

    def _nearest(
        self, vectors: NDArray[np.float32], k: int, accuracy: Accuracy, matching: str | None
    ) -> tuple[list[NDArray[np.float32]], list[NDArray[Any]]]:
        parameters = {} if self.manifest.kind == "flat" else {"ef": max(EF.get(accuracy, 0), 2 * k)}
        options = self.connection.options
        scores: list[NDArray[np.float32]] = []
        rows: list[NDArray[Any]] = []
        at_once = min(MAX_HITS, SCORES // k)
        for start in range(0, len(vectors), at_once):
            with self.connection.told():
                found = self.connection.client.search(
                    self.collection,
                    data=np.asarray(vectors[start : start + at_once], np.float32).tolist(),
                    anns_field="vector",
                    filter=matching or "",
                    limit=k,
                    search_params={"metric_type": "IP", "params": parameters},
                    consistency_level=options.consistency.title(),
                    timeout=options.timeout,
                )
            for hits in found:
                # Of equal scores, Milvus gives any order.
                ordered = sorted((-hit["distance"], hit["id"]) for hit in hits)
                scores.append(np.clip(np.array([-score for score, _ in ordered], np.float32), -1, 1))
                ids = np.empty(len(ordered), object)
                ids[:] = [identifier for _, identifier in ordered]
                rows.append(ids)
        return scores, rows

    def matching(self, filter: Filter) -> str:  # noqa: A002
        """The filter as Milvus's expression.

        Raises:
            FilterError: It is over a limit.
        """
        check(filter)
        return to_expression(filter)

    def records(self, rows: Sequence[str]) -> list[Record | None]:
        """The records of ids, in their order; None for one that was deleted meanwhile."""
        found = {
            row["id"]: Record(row["text"], row["label"], row["id"], row["attributes"])
            for row in self._get(rows, ["text", "label", "attributes"])
        }
        return [found.get(row) for row in rows]

    def hits(self, rows: NDArray[Any], scores: NDArray[np.float32]) -> list[Hit | None]:
        """The records of ids with their scores, in their order; None for one that was deleted meanwhile."""
        records = self.records(rows.tolist())
        pairs = zip(records, scores.tolist(), strict=True)
        return [None if record is None else Hit.of(record, score) for record, score in pairs]

    def labels(self, rows: Iterable[str]) -> dict[str, str | None]:
        """The labels of records by id; None where one has none, or is no more."""
        rows = list(rows)
        return dict.fromkeys(rows) | {row["id"]: row["label"] for row in self._get(rows, ["label"])}

    def rows_of(self, ids: Iterable[str]) -> dict[str, str]:
        """The ids that there are, as their own rows."""
        return {row["id"]: row["id"] for row in self._get(ids, [])}

    def vectors(self, rows: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of records by id, in the order asked for: float32, shape (rows, dimension).

        Raises:
            UnavailableError: One was deleted meanwhile.
        """
        found = {row["id"]: row["vector"] for row in self._get(rows, ["vector"])}
        if len(found) < len(set(rows)):
            raise UnavailableError("a record that was asked for has just been deleted; try again")
        return np.array([found[row] for row in rows], np.float32).reshape(len(rows), self.dimension)

    def sample_rows(self, count: int) -> list[str]:
        """The ids of some of its records: whichever Milvus gives first."""
        options = self.connection.options
        with self.connection.told():
            found = self.connection.client.query(
                self.collection,
                filter="",
                limit=min(count, MAX_HITS),
                output_fields=["id"],
                consistency_level=options.consistency.title(),
                timeout=options.timeout,
            )
        return [row["id"] for row in found]

    def _get(self, ids: Iterable[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        wanted = sorted(set(ids))
        return self.connection.query(self.collection, wanted, ["id", *fields]) if wanted else []


def read_manifest(connection: MilvusConnection, collection: str) -> tuple[IndexManifest, str]:
    """The manifest of a collection, and its version.

    Raises:
        ArtifactError: There is no such collection, or it is none of cognate's.
        UnavailableError: Milvus does not answer.
    """
    where = connection.location.of(collection)
    if not connection.has_collection(collection):
        raise ArtifactError(
            f"there is no index {where}; build one with `cognate index build … --out {where}`"
        )
    raw = connection.properties(collection).get(MANIFEST)
    if raw is None:
        raise ArtifactError(f"{where} is a collection that cognate did not build; give another")
    try:
        manifest = IndexManifest.model_validate_json(raw)
    except pydantic.ValidationError:
        raise ArtifactError(f"the manifest of {where} cannot be read; build the index again") from None
    if manifest.format_version > IndexManifest.FORMAT_VERSION:
        raise ArtifactError(f"{where} was built by a newer cognate; upgrade cognate, or build it again")
    return manifest, hashlib.sha256(raw.encode()).hexdigest()[:12]
