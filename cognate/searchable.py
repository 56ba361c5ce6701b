"""What an index is to those who search it, wherever it is kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from cognate.errors import CognateError, FingerprintError
from cognate.filters import Filter
from cognate.milvus.location import MilvusLocation, is_milvus
from cognate.records import Accuracy, Hit, Record

if TYPE_CHECKING:
    from cognate.index import IndexManifest
    from cognate.narrowing import Narrowing

Location = Path | MilvusLocation
"""Where an index is: a folder, or a collection in Milvus."""


def index_location(text: str | Path | MilvusLocation) -> Location:
    """Read where an index is.

    Raises:
        CognateError: It is meant to be in Milvus, and is no location there.
    """
    if isinstance(text, MilvusLocation):
        return text
    return MilvusLocation.parse(text) if isinstance(text, str) and is_milvus(text) else Path(text)


class Searchable(Protocol):
    """An open index: ``cognate.index.Index``, or ``cognate.milvus.index.MilvusIndex``. For several threads.

    A record has a row, by which it is asked for once it was found: a number, or in Milvus its id.
    """

    @property
    def location(self) -> Location:
        """Where this version of it is, to be opened again."""

    @property
    def manifest(self) -> "IndexManifest":
        """What it says of itself."""

    @property
    def version(self) -> str:
        """What tells it from any other index: 12 hexadecimal digits."""

    @property
    def count(self) -> int:
        """How many records it holds."""

    @property
    def dimension(self) -> int:
        """Components of a vector."""

    @property
    def device(self) -> str:
        """Where it is searched: "cpu", "cuda", "milvus"."""

    @property
    def remote(self) -> bool:
        """Whether a search waits for another machine, rather than keeps this one busy."""

    def close(self) -> None:
        """Let go of it. No search may be under way, and none can come after."""

    def search(
        self,
        vectors: NDArray[np.float32],
        top_k: int = 10,
        *,
        min_score: float | None = None,
        accuracy: Accuracy = "balanced",
        narrowing: "Narrowing | None" = None,
    ) -> list[list[Hit]]:
        """Find the records nearest to each vector by cosine similarity."""

    def search_rows(
        self,
        vectors: NDArray[np.float32],
        top_k: int,
        *,
        accuracy: Accuracy = "balanced",
        matching: Any = None,
        stable: bool = False,
    ) -> tuple[Iterable[NDArray[np.float32]], Iterable[NDArray[Any]]]:
        """Find the rows nearest to each vector: scores and rows of each query, best first."""

    def matching(self, filter: Filter) -> Any:  # noqa: A002
        """What a filter lets through, for ``search_rows``."""

    def records(self, rows: Sequence[Any]) -> Sequence[Record | None]:
        """The records of rows, in their order; None for one that was deleted meanwhile."""

    def hits(self, rows: NDArray[Any], scores: NDArray[np.float32]) -> Sequence[Hit | None]:
        """The records of rows with their scores, in their order; None for one that was deleted meanwhile."""

    def labels(self, rows: Iterable[Any]) -> dict[Any, str | None]:
        """The labels of records by row; None where one has none."""

    def rows_of(self, ids: Iterable[str]) -> dict[str, Any]:
        """The rows of records by id; an id that no record has is left out."""

    def vectors(self, rows: Sequence[Any]) -> NDArray[np.float32]:
        """The vectors of records by row, in the order asked for: float32, shape (rows, dimension)."""

    def sample_rows(self, count: int) -> list[Any]:
        """Rows of some of its records, or of all where it holds fewer."""


def check_fingerprint(place: Location, manifest: "IndexManifest", fingerprint: str | None) -> None:
    """Refuse an index whose vectors are of another bundle than the queries'; None is any.

    Raises:
        FingerprintError: They are.
    """
    if fingerprint is not None and fingerprint != manifest.fingerprint:
        raise FingerprintError(
            f"{place} was built with another bundle ({manifest.model}, fingerprint "
            f"{manifest.fingerprint[:12]}) than this one ({fingerprint[:12]}); "
            "give the bundle that it was built with, or build it again"
        )


def check_search(vectors: NDArray[np.float32], top_k: int, accuracy: Accuracy, dimension: int) -> None:
    """Refuse what no index of a dimension can search for.

    Raises:
        CognateError: top_k is less than 1, there is no such accuracy, or the vectors have another dimension
            or are not finite.
    """
    check_shape(vectors.shape, top_k, accuracy, dimension)
    if not np.isfinite(vectors).all():
        raise CognateError("a query vector has a component that is not finite")


def check_shape(shape: tuple[int, ...], top_k: int, accuracy: Accuracy, dimension: int) -> None:
    """``check_search`` of vectors that cannot be looked at.

    Raises:
        CognateError: As that, but for what is not finite.
    """
    if top_k < 1:
        raise CognateError(f"top_k is {top_k}; it must be at least 1")
    if accuracy not in get_args(Accuracy):
        raise CognateError(
            f"there is no accuracy {accuracy!r}; choose one of {', '.join(get_args(Accuracy))}"
        )
    if len(shape) != 2 or shape[1] != dimension:
        raise CognateError(f"the query vectors have shape {shape}; the index needs (queries, {dimension})")
