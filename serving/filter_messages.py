"""Filters on the wire, read."""

from cognate.filters import (
    And,
    Contains,
    Exists,
    Filter,
    FilterError,
    In,
    Not,
    Or,
    Path,
    Prefix,
    Range,
    Value,
    check,
    parse_field,
)
from cognate.v1 import filter_pb2
from serving.refusal import bad_field


def read_filter(field: str, message: filter_pb2.Filter) -> Filter:
    """Read a filter from a request. Protobuf has bounded how deep it is.

    Args:
        field: Where it is, for the refusal.
        message: The message.

    Raises:
        Refusal: A condition or value is not set, a field cannot be read, or a limit is passed.
    """
    read = _read(field, message)
    try:
        check(read)
    except FilterError as error:
        raise bad_field(field, str(error)) from None
    return read


def _read(field: str, message: filter_pb2.Filter) -> Filter:
    match message.WhichOneof("condition"):
        case "all":
            return And(_read_list(f"{field}.all", message.all))
        case "any":
            return Or(_read_list(f"{field}.any", message.any))
        case "none":
            filters = _read_list(f"{field}.none", message.none)
            return Not(filters[0] if len(filters) == 1 else Or(filters))
        case "equals":
            name = f"{field}.equals"
            values = enumerate(message.equals.values)
            return In(
                _read_field(f"{name}.field", message.equals.field),
                tuple(_read_value(f"{name}.values[{position}]", value) for position, value in values),
            )
        case "contains":
            name = f"{field}.contains"
            values = enumerate(message.contains.values)
            return Contains(
                _read_field(f"{name}.field", message.contains.field),
                tuple(_read_value(f"{name}.values[{position}]", value) for position, value in values),
            )
        case "range":
            name = f"{field}.range"
            bounds = {
                bound: _read_value(f"{name}.{bound}", getattr(message.range, bound))
                for bound in ("above", "at_least", "below", "at_most")
                if message.range.HasField(bound)
            }
            return Range(_read_field(f"{name}.field", message.range.field), **bounds)
        case "prefix":
            path = _read_field(f"{field}.prefix.field", message.prefix.field)
            return Prefix(path, message.prefix.prefix)
        case "exists":
            return Exists(_read_field(f"{field}.exists", message.exists))
    raise bad_field(field, "has no condition; set one, such as equals")


def _read_list(field: str, message: filter_pb2.FilterList) -> tuple[Filter, ...]:
    return tuple(_read(f"{field}.filters[{position}]", one) for position, one in enumerate(message.filters))


def _read_field(field: str, text: str) -> Path:
    try:
        return parse_field(text)
    except FilterError as error:
        raise bad_field(field, str(error)) from None


def _read_value(field: str, message: filter_pb2.FilterValue) -> Value:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise bad_field(field, "has no value; set text, number, integer or boolean")
    value: Value = getattr(message, kind)
    return value
