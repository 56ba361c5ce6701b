"""Filters as Milvus's expressions: that milvus-lite finds by them what they say."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cognate.bundle import Bundle
from cognate.filters import (
    LABEL,
    And,
    Contains,
    Filter,
    FilterError,
    In,
    Not,
    Or,
    Prefix,
    Range,
    check,
    parse,
)
from cognate.milvus.expressions import to_expression
from cognate.milvus.index import MilvusIndex
from cognate.records import Record
from tests.milvus.collections import lite, publish_records
from tests.test_filters import FILTERS, matches

ATTRIBUTES: list[Any] = [
    None,
    {},
    {"a": None},
    {"a": 2},
    {"a": -3, "b": "ab"},
    {"a": 0.5, "x y": "a"},
    {"a": "2", "b": "b"},
    {"a": "ab", "b": {"a": 2, "b": "é"}},
    {"a": [2, "a"], "b": {}},
    {"a": {"a": "a", "b": {"a": 3}}},
    {"a": 2**53 + 1, "b": "%"},
    {"a": 2**53, "b": '"\\\n'},
    {"label": "a", "attributes": {"a": 2}, "é.$[0]": "b"},
    {"in": 2, "Not": "ab", "b": "true"},
    {"a": -(2**63), "b": 1e300},
    {"a": "\U0010ffff\U0010ffff", "b": "\ud7ff"},
]
LABELS = [None, "", "a", "ab", "é", "%"]
RECORDS = [
    Record("text", LABELS[number % len(LABELS)], f"r{number:03}", attributes)
    for number, attributes in enumerate(ATTRIBUTES * len(LABELS))
]


@pytest.fixture(scope="module")
def index(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusIndex]:
    folder = tmp_path_factory.mktemp("expressions")
    vectors = np.zeros((len(RECORDS), 4), np.float32)
    vectors[:, 0] = 1
    with lite(folder) as alias:
        publish_records(alias, Bundle.open(tiny_bundle), RECORDS, vectors, note=folder / "note")
        with contextlib.closing(MilvusIndex(alias)) as index:
            yield index


def found(index: MilvusIndex, filter: Filter) -> set[str]:  # noqa: A002
    scores, rows = index.search_rows(
        np.eye(1, 4, dtype=np.float32), len(RECORDS), matching=index.matching(filter)
    )
    assert len(scores) == 1
    return set(rows[0])


def expected(filter: Filter) -> set[str]:  # noqa: A002
    return {record.id or "" for record in RECORDS if matches(filter, record.label, record.attributes)}


@pytest.mark.parametrize(
    "text",
    [
        "a = 2",
        "not a = 2",
        'a = "2"',
        'not a = "2"',
        'a in (2, "2", -3)',
        'not a in (2, "2", -3)',
        "a > 0",
        "a >= -3 and a < 2",
        'a > "1"',
        "a contains 2",
        'a contains ("b", "a")',
        "not a contains 2",
        "exists a",
        "not exists a",
        "exists b.a",
        "not exists b.a",
        "b.a = 2",
        "not b.a = 2",
        "a.b.a = 3",
        'b prefix "a"',
        'b = "%"',
        'b prefix "%"',
        'b = "\\"\\\\\\n"',
        'label = "a"',
        'not label = "a"',
        'label in ("a", "é")',
        'label prefix "a"',
        "exists label",
        "not exists label",
        'label > "a"',
        'not (label > "a" or exists a)',
        'not label prefix "a"',
        'not (not exists label and not (a = 2 or b = "b"))',
        "a = 9007199254740993",
        "a = 9007199254740992",
        "a = -9223372036854775808",
        "b = 1e300",
        '"x y" = "a"',
        'attributes.label = "a"',
        "attributes.attributes.a = 2",
        '"é.$[0]" = "b"',
        '"in" = 2',
        'a prefix "\U0010ffff"',
        'b prefix "\ud7ff"',
    ],
)
def test_a_filter_finds_what_it_says(index: MilvusIndex, text: str) -> None:
    filter = parse(text)  # noqa: A001
    assert found(index, filter) == expected(filter)


def alike_in_lite(filter: Filter, *, negated: bool = False) -> bool:  # noqa: A002
    """Whether a filter means the same in milvus-lite.

    There true equals 1, and false 0; and a range of an attribute that has a value of another type is neither
    true nor false, so that ``not`` of it is neither.
    """
    match filter:
        case And(filters) | Or(filters):
            return all(alike_in_lite(one, negated=negated) for one in filters)
        case Not(inner):
            return alike_in_lite(inner, negated=not negated)
        case In(_, values) | Contains(_, values):
            return not any(isinstance(value, bool) or value in (0, 1) for value in values)
        case Range(field) | Prefix(field):
            return not negated or field == LABEL
    return True


def test_what_milvus_lite_does_otherwise_is_as_documented(index: MilvusIndex) -> None:
    missing = found(index, parse("not a > 0"))
    assert missing < expected(parse("not a > 0"))
    assert missing == expected(parse("not exists a or a <= 0"))


@given(FILTERS)
@settings(max_examples=50)
def test_any_filter_finds_what_it_says(index: MilvusIndex, filter: Filter) -> None:  # noqa: A002
    assume(alike_in_lite(filter))
    try:
        check(filter)
    except FilterError:
        assume(False)
    assert found(index, filter) == expected(filter)


@given(st.text(), st.text())
def test_a_string_never_ends_its_literal(value: str, key: str) -> None:
    """Whatever a caller's string has in it, quotes outside of literals are those of the expression itself."""
    filter = And((In((), (value,)), In(("a",), (value,))))  # noqa: A001
    written = to_expression(filter)
    outside, inside, escaped = [], False, False
    for character in written:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
            outside.append(character)
        elif not inside:
            outside.append(character)
    assert "".join(outside) == '((label == "") and (attributes[""] == ""))'


def test_a_prefix_ends_before_the_next_character() -> None:
    assert to_expression(Prefix((), "ab")) == '(label >= "ab" and label < "ac")'
    assert to_expression(Prefix((), "a\U0010ffff")) == '(label >= "a\U0010ffff" and label < "b")'
    assert to_expression(Prefix((), "\U0010ffff")) == '(label >= "\U0010ffff")'
    assert to_expression(Prefix((), "\ud7ff")) == '(label >= "\ud7ff" and label < "\ue000")'
    assert (
        to_expression(Range(("a",), above=1, at_most=2)) == '(attributes["a"] > 1 and attributes["a"] <= 2)'
    )
