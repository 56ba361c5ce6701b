"""Filters as Milvus's expressions over the fields label (VARCHAR) and attributes (JSON)."""

import json

from cognate.filters import LABEL, And, Contains, Exists, Filter, In, Not, Or, Path, Prefix, Range, Value

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})


def to_expression(filter: Filter) -> str:  # noqa: A002
    """Write a filter as an expression.

    Milvus's ``not`` of a condition on a field that is not there is neither true nor false. So ``not`` is
    pushed down to the conditions, and there says that the field may be missing.

    Args:
        filter: As ``cognate.filters.check`` lets it pass.
    """
    return _expression(filter, negated=False)


def _expression(filter: Filter, *, negated: bool) -> str:  # noqa: A002
    match filter:
        case Not(inner):
            return _expression(inner, negated=not negated)
        case And(filters) | Or(filters):
            operator = " and " if isinstance(filter, And) is not negated else " or "
            return f"({operator.join(_expression(one, negated=negated) for one in filters)})"
    condition = _condition(filter)
    if not negated:
        return condition
    if filter.field == LABEL:
        return f"(label is null or not {condition})"
    missing = f"attributes is null or not (exists {_field(filter.field)})"
    return f"({missing})" if isinstance(filter, Exists) else f"({missing} or not {condition})"


def _condition(condition: In | Range | Prefix | Exists | Contains) -> str:
    field = _field(condition.field)
    match condition:
        case In(_, values):
            # Not Milvus's `in`: milvus-lite has it for fields alone, not for what is in them.
            return _joined(" or ", [f"{field} == {_literal(value)}" for value in values])
        case Contains(_, values):
            # Not json_contains, which in milvus-lite takes no number below zero.
            return f"json_contains_any({field}, [{', '.join(map(_literal, values))}])"
        case Range():
            return _joined(
                " and ", [f"{field} {operator} {_literal(value)}" for operator, value in condition.bounds()]
            )
        case Prefix(_, prefix):
            # Not `like`, whose escapes of % and _ differ between Milvus and milvus-lite.
            bounds = [f"{field} >= {_literal(prefix)}"]
            if (after := _after(prefix)) is not None:
                bounds.append(f"{field} < {_literal(after)}")
            return _joined(" and ", bounds)
        case Exists():
            return "(label is not null)" if condition.field == LABEL else f"(exists {field})"


def _after(prefix: str) -> str | None:
    """The first string, by code points, after all that begin with a prefix; None where there is none."""
    kept = prefix.rstrip(chr(0x10FFFF))
    if not kept:
        return None
    last = ord(kept[-1]) + 1
    # Surrogates are no characters.
    return kept[:-1] + chr(0xE000 if last == 0xD800 else last)


def _joined(operator: str, parts: list[str]) -> str:
    return f"({operator.join(parts)})"


def _field(path: Path) -> str:
    # Keys have neither quotes nor backslashes nor control characters: filters.check refuses them.
    return "label" if path == LABEL else "attributes" + "".join(f'["{key}"]' for key in path)


def _literal(value: Value) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    # What would end the literal, or may not be in one; of JSON's other escapes milvus-lite knows none.
    return '"' + value.translate(_ESCAPES) + '"'
