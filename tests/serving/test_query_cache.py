"""The cache of queries: bounded, and the last asked stay."""

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.batcher import Usage
from serving.query_cache import CachedQuery, QueryCache


def query(tokens: int = 3) -> CachedQuery:
    return CachedQuery(np.zeros(8, np.float32), Usage(tokens, truncated=False, cached=True))


ENTRY = QueryCache(10**9)
ENTRY.put("a", query())
BYTES = ENTRY.size
"""Of an entry whose text has one character."""


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdefgh"))), st.integers(0, 5))
def test_it_keeps_the_last_asked_and_no_more(steps: list[tuple[bool, str]], room: int) -> None:
    cache = QueryCache(room * BYTES)
    expected: OrderedDict[str, CachedQuery] = OrderedDict()
    hits = 0
    for put, text in steps:
        if put:
            new = query()
            cache.put(text, new)
            expected[text] = new
            expected.move_to_end(text)
            while len(expected) > room:
                expected.popitem(last=False)
        else:
            assert cache.get(text) is expected.get(text)
            if text in expected:
                expected.move_to_end(text)
                hits += 1
        assert len(cache) == len(expected)
        assert cache.size == len(expected) * BYTES <= cache.max_bytes
    assert cache.hits == hits
    assert cache.misses == sum(not put for put, _ in steps) - hits


def test_what_is_larger_than_all_of_it_is_not_kept_and_drives_nothing_out() -> None:
    cache = QueryCache(2 * BYTES)
    cache.put("a", query())
    cache.put("a" * 10_000, query())
    assert len(cache) == 1
    assert cache.get("a")
