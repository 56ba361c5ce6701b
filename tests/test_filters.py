"""Filters: that their SQL means what they say, and what their text form takes and refuses."""

import contextlib
import json
import sqlite3
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate import filters
from cognate.filters import (
    LABEL,
    And,
    Contains,
    Exists,
    Filter,
    FilterError,
    In,
    Not,
    Or,
    Prefix,
    Range,
    check,
    field_text,
    parse,
    parse_field,
    to_sql,
)

KEYS = st.sampled_from(["a", "b", "label", "attributes", "", "x y", "é.$[0]", "in", "Not"])
STRINGS = st.one_of(
    st.sampled_from(["", "a", "ab", "b", "0", "true", "é", "%", "'"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=3),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, -0.0, 1.0, 2**53 + 1, 2**53, float(2**53), 2**63 - 1, -(2**63), 1e300]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.one_of(STRINGS, NUMBERS, st.booleans())
PATHS = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
ATTRIBUTES = st.one_of(
    st.none(),
    st.dictionaries(
        KEYS,
        st.recursive(
            st.one_of(st.none(), VALUES),
            lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3)),
            max_leaves=6,
        ),
        max_size=4,
    ),
)


@st.composite
def ranges(draw: st.DrawFn, path: filters.Path) -> Range:
    kind = STRINGS if path == LABEL or draw(st.booleans()) else NUMBERS
    names = draw(st.sets(st.sampled_from(["above", "at_least", "below", "at_most"]), min_size=1))
    return Range(path, **{name: draw(kind) for name in sorted(names)})  # type: ignore[arg-type]


@st.composite
def conditions(draw: st.DrawFn) -> Filter:
    path = draw(st.one_of(st.just(LABEL), PATHS))
    values = STRINGS if path == LABEL else VALUES
    attribute = PATHS if path == LABEL else st.just(path)
    return draw(
        st.one_of(
            st.builds(In, st.just(path), st.lists(values, min_size=1, max_size=3).map(tuple)),
            ranges(path),
            st.builds(Prefix, st.just(path), STRINGS.filter(bool)),
            st.builds(Exists, st.just(path)),
            st.builds(Contains, attribute, st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
        )
    )


FILTERS = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def matches(filter: Filter, label: str | None, attributes: Any) -> bool:  # noqa: A002
    """What a filter means, said directly."""
    match filter:
        case And(inner):
            return all(matches(one, label, attributes) for one in inner)
        case Or(inner):
            return any(matches(one, label, attributes) for one in inner)
        case Not(one):
            return not matches(one, label, attributes)
    value = label if filter.field == LABEL else attributes
    for key in filter.field:
        value = value.get(key) if isinstance(value, dict) else None
    match filter:
        case In(_, values):
            return any(kind(value) is kind(wanted) and value == wanted for wanted in values)
        case Contains(_, values):
            return isinstance(value, list) and any(
                kind(item) is kind(wanted) and item == wanted for item in value for wanted in values
            )
        case Range():
            return all(
                kind(value) is kind(bound)
                and {">": value > bound, ">=": value >= bound, "<": value < bound, "<=": value <= bound}[
                    operator
                ]
                for operator, bound in filter.bounds()
                if kind(value) is kind(bound)
            ) and kind(value) is kind(filter.bounds()[0][1])
        case Prefix(_, prefix):
            return isinstance(value, str) and value.startswith(prefix)
        case Exists():
            return value is not None
    raise AssertionError


def kind(value: object) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def selected(filter: Filter, rows: list[tuple[str | None, Any]]) -> list[int]:  # noqa: A002
    check(filter)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE records (row INTEGER PRIMARY KEY, label TEXT, attributes TEXT)")
    connection.executemany(
        "INSERT INTO records VALUES (?, ?, ?)",
        [
            (row, label, None if attributes is None else json.dumps(attributes, ensure_ascii=False))
            for row, (label, attributes) in enumerate(rows)
        ],
    )
    condition, parameters = to_sql(filter)
    found = connection.execute(f"SELECT row, {condition} FROM records", parameters).fetchall()
    connection.close()
    assert all(result in (0, 1) for _, result in found)
    return [row for row, result in found if result]


@settings(max_examples=150, deadline=None)
@given(FILTERS, st.lists(st.tuples(st.one_of(st.none(), STRINGS), ATTRIBUTES), max_size=6))
def test_the_sql_of_a_filter_selects_the_records_that_match(
    filter: Filter,  # noqa: A002
    rows: list[tuple[str | None, Any]],
) -> None:
    expected = [row for row, (label, attributes) in enumerate(rows) if matches(filter, label, attributes)]
    assert selected(filter, rows) == expected


def written(filter: Filter) -> str:  # noqa: A002
    """A filter in its text form."""
    match filter:
        case And(inner) | Or(inner):
            word = " and " if isinstance(filter, And) else " or "
            return f"({word.join(map(written, inner))})"
        case Not(one):
            return f"not {written(one)}"
        case In(field, values):
            return f"{field_text(field)} in ({', '.join(json.dumps(value) for value in values)})"
        case Contains(field, values):
            one = f"({', '.join(map(json.dumps, values))})" if len(values) > 1 else json.dumps(values[0])
            return f"{field_text(field)} contains {one}"
        case Range(field):
            tests = [
                f"{field_text(field)} {operator} {json.dumps(value)}" for operator, value in filter.bounds()
            ]
            return f"({' and '.join(tests)})"
        case Prefix(field, prefix):
            return f"{field_text(field)} prefix {json.dumps(prefix, ensure_ascii=False)}"
        case Exists(field):
            return f"exists {field_text(field)}"
    raise AssertionError


@settings(max_examples=60, deadline=None)
@given(FILTERS, st.lists(st.tuples(st.one_of(st.none(), STRINGS), ATTRIBUTES), max_size=6))
def test_a_filter_that_is_written_and_read_means_the_same(
    filter: Filter,  # noqa: A002
    rows: list[tuple[str | None, Any]],
) -> None:
    assert selected(parse(written(filter)), rows) == selected(filter, rows)


@settings(deadline=None)
@given(PATHS)
def test_a_field_that_is_written_and_read_is_the_same(path: filters.Path) -> None:
    assert parse_field(field_text(path)) == path


@settings(deadline=None)
@given(st.text(st.sampled_from('ab ("),.=<>!-1eandornotin\\\n'), max_size=40))
def test_any_text_is_a_filter_or_is_refused(text: str) -> None:
    # Anything else that it raised would fail the test.
    with contextlib.suppress(FilterError):
        to_sql(parse(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('lang = "en"', In(("lang",), ("en",))),
        ('lang != "en"', Not(In(("lang",), ("en",)))),
        ("year >= 2020", Range(("year",), at_least=2020)),
        ("year<2020.5", Range(("year",), below=2020.5)),
        ('date > "2026-11"', Range(("date",), above="2026-11")),
        ('label in ("a", "b")', In(LABEL, ("a", "b"))),
        ('attributes.label = "a"', In(("label",), ("a",))),
        ("n not in (1, -2e3, true)", Not(In(("n",), (1, -2000.0, True)))),
        ("exists author.name", Exists(("author", "name"))),
        ('title prefix "Qu"', Prefix(("title",), "Qu")),
        ('tags contains "a"', Contains(("tags",), ("a",))),
        ("contains contains (1, true)", Contains(("contains",), (1, True))),
        ('"x y"."and" = false', In(("x y", "and"), (False,))),
        ("EXISTS a AND NOT EXISTS b", And((Exists(("a",)), Not(Exists(("b",)))))),
        (
            "exists a or exists b and exists c",
            Or((Exists(("a",)), And((Exists(("b",)), Exists(("c",)))))),
        ),
        (
            "(exists a or exists b) and exists c",
            And((Or((Exists(("a",)), Exists(("b",)))), Exists(("c",)))),
        ),
        ('s = "\\u00e9\\n\\""', In(("s",), ('é\n"',))),
    ],
)
def test_the_text_form(text: str, expected: Filter) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs a field at its end"),
        ("lang", "needs a test of lang, such as `= 1`"),
        ("lang = en", "needs a string in double quotes, a number, true or false at 'en'"),
        ("lang = 'en'", "strings are in double quotes"),
        ('lang = "en', "cannot be read at '\"en', a quote that is never closed"),
        ('lang = "en\\"', "a quote that is never closed"),
        ("(a = 1", "needs `and`, `or` or `)` at its end"),
        ("a = 1 b = 2", "needs `and`, `or` or nothing more at 'b = 2'"),
        ("a = 1; drop table records", "cannot be read at '; drop table records'"),
        ("a in ()", "needs a string in double quotes, a number, true or false at ')'"),
        ("a not prefix", "needs `in` after `not`"),
        ("a = 007", "as in JSON at '007'"),
        ("a prefix 3", "needs a string in double quotes at '3'"),
        ('a prefix ""', "use `exists a`"),
        ("label = 3", 'write label = "3"'),
        ("label contains 3", "what the label contains, which is no list"),
        ("tags contains ()", "needs a string in double quotes"),
        ("tags contains x", "needs a string in double quotes, a number, true or false at 'x'"),
        ("year > true", "has a bound of true or false"),
        ("a = 1e999", "give a finite number"),
        ("a = 99999999999999999999", "more than 64 bits"),
        (f'a = "{"x" * 5000}"', "longer than 4096 bytes"),
        ('a = "\\u0000"', "has a NUL"),
        ('exists "a\\"b"', "has a double quote"),
        (f'exists "{"k" * 300}"', "longer than 256 bytes"),
        ("exists " + ".".join("k" * 17), "has 17 keys; give at most 16"),
        ("not " * 17 + "a = 1", "nested deeper than 16 levels"),
        ("(" * 10_000 + "a = 1" + ")" * 10_000, "nested deeper than 16 levels"),
        ("not " * 10_000 + "a = 1", "nested deeper than 16 levels"),
        (" or ".join(["a = 1"] * 129), "has 129 conditions; give at most 128"),
        (f"a in ({', '.join('1' * 1001)})", "has 1001 values; give at most 1000"),
    ],
)
def test_what_the_text_form_refuses_is_one_line(text: str, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_filters_within_the_limits_are_run() -> None:
    deep = "not " * 16 + "a = 1"
    wide = " or ".join(f"a = {number}" for number in range(128))
    long = f"a in ({', '.join(map(str, range(1000)))})"
    for text in (deep, wide, long):
        assert selected(parse(text), [(None, {"a": 1}), (None, {"a": "1"})]) == [0]


@pytest.mark.parametrize(
    ("filter", "says"),
    [
        (And(()), "has nothing in it"),
        (In(("a",), ()), "list for a is empty"),
        (Range(("a",)), "range of a has no bound"),
        (Range(("a",), above=1, below="2"), "from a number to a string"),
        (In(("a",), ("\ud800",)), "unpaired surrogate"),
    ],
)
def test_what_only_a_program_can_write_is_refused_too(filter: Filter, says: str) -> None:  # noqa: A002
    with pytest.raises(FilterError, match=says):
        check(filter)
