"""Who may call what: API keys, their rights and indexes, and how much each may ask for."""

import hmac
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cognate.errors import CognateError
from cognate.v1 import index_pb2, search_pb2
from serving import refusal
from serving.encoding import count_queries
from serving.keys import Key, Right, hash_of, read_keys
from serving.rates import Bucket
from serving.refusal import Refusal
from serving.settings import DEFAULT_INDEX

_log = logging.getLogger(__name__)

_RIGHTS: dict[str, Right | None] = {
    "EmbeddingService/Encode": "encode",
    "EmbeddingService/EncodeStream": "encode",
    "SearchService/Search": "search",
    "SearchService/SearchStream": "search",
    "IndexService/ListIndexes": None,
    "IndexService/Upsert": "write",
    "IndexService/Delete": "write",
    "InfoService/GetInfo": None,
}
"""The right that each method needs; None: any key will do."""

_READS = ("Get", "List", "Describe", "Watch")
"""How the names of methods that change nothing begin."""

_BEARER = "bearer "


def right_for(method: str) -> Right | None:
    """The right that a method needs. One that is not known and is no read needs "admin".

    Args:
        method: Its full name, such as ``/cognate.v1.SearchService/Search``.

    Returns:
        None where any key will do.
    """
    short = method.rpartition(".")[2]
    if short in _RIGHTS:
        return _RIGHTS[short]
    return None if short.rpartition("/")[2].startswith(_READS) else "admin"


class Caller:
    """Who makes a call: the holder of a key, or anybody where there are no keys.

    Attributes:
        name: The key's; empty for anybody.
    """

    def __init__(self, key: Key | None = None) -> None:
        self.name = key.name if key else ""
        self.key = key
        self._calls = self._texts = None
        if key and key.calls_per_second:
            self._calls = _bucket(key.calls_per_second, key.burst_seconds)
        if key and key.texts_per_second:
            self._texts = _bucket(key.texts_per_second, key.burst_seconds)

    def check(self, method: str, request: Any) -> None:
        """Check a request: each message of a stream is one.

        Where the key is for some indexes only and the request names none, the request gets the name of
        the key's only one, or of "default".

        Args:
            method: Its full name.
            request: A message of the contract.

        Raises:
            Refusal: NOT_PERMITTED where the index is another's; RATE_LIMITED.
        """
        if self.key is None:
            return
        self._check_index(method, request)
        # What needs no right costs next to nothing, and clients ask for the limits before their first call.
        if right_for(method):
            if isinstance(request, search_pb2.SearchRequest):
                texts = count_queries(request)
            else:
                texts = sum(len(getattr(request, name, ())) for name in ("texts", "records"))
            self._check_rate(texts)

    def visible(self, response: Any) -> Any:
        """An answer without what the key may not see: the indexes of others."""
        if isinstance(response, index_pb2.ListIndexesResponse) and self.key and self.key.indexes:
            shown = [index for index in response.indexes if index.name in self.key.indexes]
            return index_pb2.ListIndexesResponse(indexes=shown)
        return response

    def hide(self, why: Refusal) -> None:
        """Let a refusal not name what the key may not see: the indexes of others."""
        if self.key and self.key.indexes:
            why.indexes = [name for name in why.indexes if name in self.key.indexes]

    def _check_index(self, method: str, request: Any) -> None:
        if not self.key or not self.key.indexes:
            return
        fields = request.DESCRIPTOR.fields_by_name
        field = next((name for name in ("index", "name") if name in fields), None)
        allowed = sorted(self.key.indexes)
        if field is None:
            if right_for(method) == "admin":
                raise refusal.not_permitted(
                    f"the key {self.name!r} is for the indexes {refusal.listed(allowed)}"
                )
            return
        # Said outright, for the service's own default may be an index that is not the key's.
        if not getattr(request, field) and (len(allowed) == 1 or DEFAULT_INDEX in allowed):
            setattr(request, field, allowed[0] if len(allowed) == 1 else DEFAULT_INDEX)
        if getattr(request, field) not in allowed:
            raise refusal.not_permitted(f"the key {self.name!r} is for the indexes {refusal.listed(allowed)}")

    def _check_rate(self, texts: int) -> None:
        now = time.monotonic()
        limits = [(bucket, n) for bucket, n in ((self._calls, 1), (self._texts, texts)) if bucket]
        wait = max((bucket.wait(amount, now) for bucket, amount in limits), default=0.0)
        if wait > 0:
            raise refusal.rate_limited(self.name, wait)
        for bucket, amount in limits:
            bucket.take(amount, now)


class Access:
    """Finds out who calls, and whether he may."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the keys.

        Args:
            file: As ``serving.keys`` has it. None: there are no keys, and anybody may do anything.

        Raises:
            CognateError: As ``read_keys``.
        """
        self._file = file
        self._callers = self._read()

    def reload(self) -> None:
        """Read the file again; a bad one changes nothing, and is logged. Limits begin afresh."""
        if self._file is None:
            return
        try:
            self._callers = self._read()
        except CognateError as error:
            _log.warning("%s; the keys from before stay in use", error)
        else:
            _log.info("read %d keys", len(self._callers))

    def admit(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Find out who makes a call, before its request is read.

        Args:
            method: Its full name, such as ``/cognate.v1.SearchService/Search``.
            metadata: The call's; ``authorization`` of it is ``Bearer`` and a key.

        Raises:
            Refusal: BAD_KEY where there is none or it is not known; NOT_PERMITTED without the right.
        """
        if self._file is None:
            return _ANYBODY
        caller = self._find(metadata)
        right = right_for(method)
        if right and caller.key and right not in caller.key.rights:
            raise refusal.not_permitted(f"the key {caller.name!r} has not the right {right!r}")
        return caller

    def _find(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        value = next((value for name, value in metadata if name == "authorization"), None)
        if not isinstance(value, str) or value[: len(_BEARER)].lower() != _BEARER:
            raise refusal.bad_key("this server needs a key; send it as `authorization: Bearer KEY`")
        given = hash_of(value[len(_BEARER) :].strip())
        found = None
        # All are compared, each in constant time: how long it takes tells nothing about any.
        for sha256, caller in self._callers:
            if hmac.compare_digest(sha256, given):
                found = caller
        if found is None:
            raise refusal.bad_key("this key is not known here; ask the operator for another")
        return found

    def _read(self) -> list[tuple[str, Caller]]:
        return [(key.sha256, Caller(key)) for key in read_keys(self._file)] if self._file else []


_ANYBODY = Caller()


def _bucket(rate: float, seconds: float) -> Bucket:
    return Bucket(rate, max(1.0, rate * seconds))
