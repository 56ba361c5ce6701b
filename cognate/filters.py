"""Filters: conditions on the label and the attributes of records, their text form, and their SQL.

A field is ``label``, or the path of an attribute: ``lang``, ``author.name``. A condition holds for a record
that has a value there, of the condition's own type: a string is compared with strings, a number with numbers,
true with booleans. A record without the field, or with a null, a list, an object or a value of another type
there, does not match; so ``not`` of the condition holds for it. What a list
holds is asked for by ``Contains`` alone.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cognate.errors import CognateError
from cognate.records import is_large

MAX_DEPTH = 16
"""Levels of and, or and not."""

MAX_CONDITIONS = 128
MAX_VALUES = 1000
"""Values in all lists of a filter together."""

MAX_VALUE_BYTES = 4096
MAX_PATH = 16
"""Keys of a path; attributes are nested no deeper."""

MAX_KEY_BYTES = 256
MAX_TEXT_BYTES = 1024 * 1024
"""Of a filter's text form."""

Value = str | int | float | bool
Path = tuple[str, ...]
"""The keys of an attribute, from the outermost inwards."""

LABEL: Path = ()
"""The field that is the record's label. An attribute of that name is ("label",), or ``attributes.label``."""


@dataclass(frozen=True, slots=True)
class In:
    """The field has one of some values.

    Attributes:
        field: The path of an attribute, or ``LABEL``.
        values: At least one, of any types.
    """

    field: Path
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The field lies within bounds, of which there is at least one.

    Numbers are compared with numbers, and strings with strings, by code points, so that dates such as
    2026-11-24 are in their order.

    Attributes:
        field: As of ``In``.
        above: It is greater.
        at_least: It is greater or equal.
        below: It is less.
        at_most: It is less or equal.
    """

    field: Path
    above: str | float | None = None
    at_least: str | float | None = None
    below: str | float | None = None
    at_most: str | float | None = None

    def bounds(self) -> list[tuple[str, str | float]]:
        """The bounds that there are: the operator, and the value."""
        bounds = ((">", self.above), (">=", self.at_least), ("<", self.below), ("<=", self.at_most))
        return [(operator, value) for operator, value in bounds if value is not None]


@dataclass(frozen=True, slots=True)
class Prefix:
    """The field is a string that begins with another.

    Attributes:
        field: As of ``In``.
        prefix: Not empty.
    """

    field: Path
    prefix: str


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there, and is not null.

    Attributes:
        field: As of ``In``.
    """

    field: Path


@dataclass(frozen=True, slots=True)
class Contains:
    """The field is a list that has one of some values among its items.

    Attributes:
        field: The path of an attribute.
        values: At least one, of any types.
    """

    field: Path
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class And:
    """All of some filters hold.

    Attributes:
        filters: At least one.
    """

    filters: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """One of some filters holds.

    Attributes:
        filters: At least one.
    """

    filters: "tuple[Filter, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """A filter does not hold.

    Attributes:
        filter: The filter.
    """

    filter: "Filter"


Condition = In | Range | Prefix | Exists | Contains
Filter = And | Or | Not | Condition


class FilterError(CognateError):
    """A filter that cannot be read, or that asks for too much."""


def check(filter: Filter) -> None:  # noqa: A002
    """Refuse what is no filter, is over a limit, or can match nothing for what it is.

    Raises:
        FilterError: It is so.
    """
    conditions = list(_conditions(filter, 1))
    if len(conditions) > MAX_CONDITIONS:
        raise FilterError(
            f"the filter has {len(conditions)} conditions; give at most {MAX_CONDITIONS}, such as by one "
            "`in` instead of many `=`"
        )
    if (values := sum(len(one.values) for one in conditions if isinstance(one, In | Contains))) > MAX_VALUES:
        raise FilterError(f"the filter has {values} values; give at most {MAX_VALUES}")
    for condition in conditions:
        _check_condition(condition)


def _conditions(filter: Filter, depth: int) -> Iterator[Condition]:  # noqa: A002
    if isinstance(filter, And | Or | Not):
        if depth > MAX_DEPTH:
            raise _too_deep()
        inner = (filter.filter,) if isinstance(filter, Not) else filter.filters
        if not inner:
            raise FilterError("an `and` or `or` of the filter has nothing in it; give at least one condition")
        for one in inner:
            yield from _conditions(one, depth + 1)
    elif isinstance(filter, Condition):
        yield filter
    else:
        raise FilterError(
            f"a filter is of type {type(filter).__name__}; give text such as 'lang = \"en\"', or what "
            "cognate.filters makes"
        )


def _too_deep() -> FilterError:
    return FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels; write it flatter")


def _check_condition(condition: Condition) -> None:
    path = condition.field
    name = field_text(path)
    if len(path) > MAX_PATH:
        raise FilterError(f"a field of the filter has {len(path)} keys; give at most {MAX_PATH}")
    for key in path:
        # JSON escapes these, and SQLite compares keys as they are escaped.
        if re.search(r'["\\\x00-\x1f]', key) or not _is_text(key, MAX_KEY_BYTES):
            raise FilterError(
                f"the filter's key {key[:64]!r} is longer than {MAX_KEY_BYTES} bytes, or has a double quote, "
                "backslash or control character, by which none can be asked for"
            )
    match condition:
        case In(_, values) | Contains(_, values):
            if isinstance(condition, Contains) and path == LABEL:
                raise FilterError(
                    "the filter asks what the label contains, which is no list; use `label in (…)`"
                )
            if not values:
                raise FilterError(f"the filter's list for {name} is empty; give at least one value")
            checked: list[Value] = list(values)
        case Range():
            checked = [value for _, value in condition.bounds()]
            if not checked:
                raise FilterError(f"the filter's range of {name} has no bound; give at least one")
            if any(isinstance(value, bool) for value in checked):
                raise FilterError(f"the filter's range of {name} has a bound of true or false; use `=`")
            if len({isinstance(value, str) for value in checked}) > 1:
                raise FilterError(f"the filter's range of {name} is from a number to a string; give one kind")
        case Prefix(_, prefix):
            if not prefix:
                raise FilterError(f"the filter's prefix of {name} is empty; use `exists {name}`")
            checked = [prefix]
        case Exists():
            checked = []
    for value in checked:
        _check_value(name, value, only_strings=path == LABEL)


def _check_value(name: str, value: Value, *, only_strings: bool) -> None:
    if isinstance(value, str):
        if not _is_text(value, MAX_VALUE_BYTES):
            raise FilterError(
                f"the filter has a value for {name} that is longer than {MAX_VALUE_BYTES} bytes, or has a "
                "NUL or an unpaired surrogate"
            )
    elif only_strings:
        raise FilterError(f'the filter compares the label, a string, with {value}; write label = "{value}"')
    elif isinstance(value, float) and not math.isfinite(value):
        raise FilterError(f"the filter compares {name} with {value}; give a finite number")
    elif isinstance(value, int) and is_large(value):
        raise FilterError(f"the filter compares {name} with {value}, which has more than 64 bits")


def _is_text(text: str, max_bytes: int) -> bool:
    try:
        return "\0" not in text and len(text.encode()) <= max_bytes
    except UnicodeEncodeError:
        return False


def to_sql(filter: Filter) -> tuple[str, list[str | float]]:  # noqa: A002
    """Write a filter as a condition over the columns label and attributes of ``records``.

    It is 0 or 1, never NULL. Everything that came with the filter, paths too, is a parameter. An attribute's
    string is compared up to its first NUL.

    Args:
        filter: As ``check`` lets it pass.

    Returns:
        The SQL, and its parameters.
    """
    match filter:
        case And(filters) | Or(filters):
            operator = " AND " if isinstance(filter, And) else " OR "
            return _joined(operator, [to_sql(one) for one in filters])
        case Not(inner):
            sql, parameters = to_sql(inner)
            return f"(NOT {sql})", parameters
        case In(field, values):
            return _in_sql(field, values)
        case Contains(field, values):
            return _contains_sql(field, values)
        case Range(field):
            bounds = filter.bounds()
            kind: Literal["text", "number"] = "text" if isinstance(bounds[0][1], str) else "number"
            return _typed_sql(field, kind, [(f"{{}} {operator} ?", [value]) for operator, value in bounds])
        case Prefix(field, prefix):
            return _typed_sql(field, "text", [("instr({}, ?) = 1", [prefix])])
        case Exists(field):
            if field == LABEL:
                return "(label IS NOT NULL)", []
            return "(ifnull(json_type(attributes, ?), 'null') <> 'null')", [_json_path(field)]


def _in_sql(field: Path, values: tuple[Value, ...]) -> tuple[str, list[str | float]]:
    strings = [value for value in values if isinstance(value, str)]
    booleans = [json.dumps(value) for value in values if isinstance(value, bool)]
    numbers = [value for value in values if not isinstance(value, str | bool)]
    parts: list[tuple[str, list[str | float]]] = []
    if strings:
        parts.append(_typed_sql(field, "text", [(f"{{}} IN ({_marks(strings)})", strings)]))
    if numbers:
        parts.append(_typed_sql(field, "number", [(f"{{}} IN ({_marks(numbers)})", numbers)]))
    if booleans:
        sql = f"ifnull(json_type(attributes, ?) IN ({_marks(booleans)}), 0)"
        parts.append((sql, [_json_path(field), *booleans]))
    return _joined(" OR ", parts)


def _contains_sql(field: Path, values: tuple[Value, ...]) -> tuple[str, list[str | float]]:
    strings = [value for value in values if isinstance(value, str)]
    booleans = [json.dumps(value) for value in values if isinstance(value, bool)]
    numbers = [value for value in values if not isinstance(value, str | bool)]
    tests: list[tuple[str, Sequence[str | float]]] = []
    if strings:
        tests.append((f"(type = 'text' AND value IN ({_marks(strings)}))", strings))
    if numbers:
        tests.append((f"(type IN ('integer', 'real') AND value IN ({_marks(numbers)}))", numbers))
    if booleans:
        tests.append((f"type IN ({_marks(booleans)})", booleans))
    path = _json_path(field)
    found, parameters = _joined(" OR ", tests)
    item = f"EXISTS (SELECT 1 FROM json_each(attributes, ?) WHERE {found})"  # noqa: S608, all is bound
    # Of an object or a single value, json_each gives what is in it too.
    return f"ifnull(json_type(attributes, ?) = 'array' AND {item}, 0)", [path, path, *parameters]


def _typed_sql(
    field: Path, kind: Literal["text", "number"], tests: Sequence[tuple[str, Sequence[str | float]]]
) -> tuple[str, list[str | float]]:
    """Tests of a field's value, where that is a string or number.

    Args:
        field: The field.
        kind: What the value must be.
        tests: All of which must hold: SQL with ``{}`` for the value, and its parameters.
    """
    if field == LABEL:
        # Not in ifnull: so SQLite finds it by the index of the labels.
        parts = [("label IS NOT NULL", []), *((sql.format("label"), [*some]) for sql, some in tests)]
        return _joined(" AND ", parts)
    path = _json_path(field)
    types = "('text')" if kind == "text" else "('integer', 'real')"
    sql, parameters = _joined(
        " AND ",
        [
            (f"json_type(attributes, ?) IN {types}", [path]),
            *((sql.format("json_extract(attributes, ?)"), [path, *some]) for sql, some in tests),
        ],
    )
    return f"ifnull({sql}, 0)", parameters


def _joined(
    operator: str, parts: Sequence[tuple[str, Sequence[str | float]]]
) -> tuple[str, list[str | float]]:
    return (
        f"({operator.join(sql for sql, _ in parts)})",
        [value for _, parameters in parts for value in parameters],
    )


def _json_path(field: Path) -> str:
    return "$" + "".join(f'."{key}"' for key in field)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


_BARE_KEY = re.compile(r"[^\W\d][\w-]*")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<word>[^\W\d][\w-]*)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
      | (?P<sign><=|>=|!=|[=<>(),.])
      | (?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = ("and", "or", "not", "in", "exists", "prefix", "true", "false")


def field_text(path: Path) -> str:
    """A field as the text form writes it."""
    if path == LABEL:
        return "label"
    keys = [
        key if _BARE_KEY.fullmatch(key) and key.lower() not in _KEYWORDS else json.dumps(key) for key in path
    ]
    # What would be read as the label, or as the word before an attribute, gets that word.
    if path == ("label",) or (path[0] == "attributes" and len(path) > 1):
        keys.insert(0, "attributes")
    return ".".join(keys)


def parse(text: str) -> Filter:
    """Read a filter from its text form, such as ``lang = "en" and not (year < 2020 or exists draft)``.

    Tests: ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, ``in (…)``, ``not in (…)``, ``prefix``, ``contains``
    (of a list: a value, or one of ``(…)``) and, before its field, ``exists``; joined by ``not``, ``and``,
    ``or``, which bind in this order, and parentheses.
    Strings are JSON's, in double quotes; so are keys that are not made of letters, digits, ``_`` and ``-``,
    or are one of these words. ``!=`` and ``not in`` hold where ``=`` and ``in`` do not, also where the field
    is not there.

    Raises:
        FilterError: It cannot be read, or is over a limit; the sentence says where.
    """
    if not _is_text(text, MAX_TEXT_BYTES):
        raise FilterError(f"the filter is longer than {MAX_TEXT_BYTES} bytes, or no text")
    parser = _Parser(text)
    parsed = parser.either(0)
    parser.expect_end()
    check(parsed)
    return parsed


def parse_field(text: str) -> Path:
    """Read a field, such as ``author.name``, from its text form.

    Raises:
        FilterError: It cannot be read.
    """
    parser = _Parser(text)
    path = parser.field()
    parser.expect_end()
    return path


class _Parser:
    """Reads a text by recursive descent: a method for each rule, and one token in view."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._advance()

    def _advance(self) -> None:
        match = _TOKEN.match(self._text, self._end)
        if match is None:
            rest = self._text[self._end :].lstrip()
            hints = {"'": "; strings are in double quotes", '"': ", a quote that is never closed"}
            raise FilterError(f"the filter cannot be read at {_shown(rest)}{hints.get(rest[0], '')}")
        self._kind = match.lastgroup or "end"
        self._token = match[self._kind]
        self._start = match.start(self._kind)
        self._end = match.end()

    def _take(self, *signs: str) -> str | None:
        """Take a sign or word where it is one of some; None where it is not."""
        found = self._token.lower() if self._kind in ("sign", "word") else ""
        if found not in signs:
            return None
        self._advance()
        return found

    def _wanted(self, what: str) -> FilterError:
        where = f"at {_shown(self._text[self._start :])}" if self._kind != "end" else "at its end"
        return FilterError(f"the filter needs {what} {where}")

    def expect_end(self) -> None:
        if self._kind != "end":
            raise self._wanted("`and`, `or` or nothing more")

    def either(self, depth: int) -> Filter:
        filters = [self._both(depth)]
        while self._take("or"):
            filters.append(self._both(depth))
        return filters[0] if len(filters) == 1 else Or(tuple(filters))

    def _both(self, depth: int) -> Filter:
        filters = [self._one(depth)]
        while self._take("and"):
            filters.append(self._one(depth))
        return filters[0] if len(filters) == 1 else And(tuple(filters))

    def _one(self, depth: int) -> Filter:
        # Parentheses without need count too: each is a call within another. Twice, as an `and` in one may be.
        if depth > 2 * MAX_DEPTH:
            raise _too_deep()
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inner = self.either(depth + 1)
            if not self._take(")"):
                raise self._wanted("`and`, `or` or `)`")
            return inner
        if self._take("exists"):
            return Exists(self.field())
        return self._test(self.field())

    def _test(self, path: Path) -> Filter:
        operator = self._take("=", "!=", "<", "<=", ">", ">=", "in", "not", "prefix", "contains")
        match operator:
            case "=":
                return In(path, (self._value(),))
            case "!=":
                return Not(In(path, (self._value(),)))
            case "<":
                return Range(path, below=self._value())
            case "<=":
                return Range(path, at_most=self._value())
            case ">":
                return Range(path, above=self._value())
            case ">=":
                return Range(path, at_least=self._value())
            case "in":
                return In(path, self._list())
            case "not":
                if not self._take("in"):
                    raise self._wanted("`in` after `not`")
                return Not(In(path, self._list()))
            case "prefix":
                if self._kind != "string":
                    raise self._wanted("a string in double quotes")
                return Prefix(path, str(self._value()))
            case "contains":
                is_list = self._kind == "sign"
                return Contains(path, self._list() if is_list else (self._value(),))
        raise self._wanted(f'a test of {field_text(path)}, such as `= 1`, `in (…)` or `prefix "…"`,')

    def _list(self) -> tuple[Value, ...]:
        if not self._take("("):
            raise self._wanted("a list such as `(1, 2)`")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        if not self._take(")"):
            raise self._wanted("`,` or `)`")
        return tuple(values)

    def _value(self) -> Value:
        if self._kind in ("string", "number"):
            try:
                value: Value = json.loads(self._token)
            except ValueError:
                raise self._wanted("a string or number as in JSON") from None
            self._advance()
            return value
        if (word := self._take("true", "false")) is not None:
            return word == "true"
        raise self._wanted("a string in double quotes, a number, true or false")

    def field(self) -> Path:
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        if keys == ["label"]:
            return LABEL
        return tuple(keys[1:] if keys[0] == "attributes" and len(keys) > 1 else keys)

    def _key(self) -> str:
        if self._kind == "string":
            return str(self._value())
        if self._kind == "word" and self._token.lower() not in _KEYWORDS:
            key = self._token
            self._advance()
            return key
        raise self._wanted("a field")


def _shown(rest: str) -> str:
    return f"{rest[:30]!r}" if len(rest) <= 30 else f"{rest[:30]!r}…"
