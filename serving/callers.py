"""Whose a call is, by its metadata."""

from typing import Any, cast, get_args

from serving.queue import ANYONE, Caller, Priority
from serving.refusal import bad_field

TENANT = "cognate-tenant"
PRIORITY = "cognate-priority"

MAX_TENANT_BYTES = 128


def read_caller(context: Any) -> Caller:
    """Read whose a call is.

    Args:
        context: Of the call.

    Raises:
        Refusal: The tenant or the priority is none.
    """
    given = {key: value for key, value in context.invocation_metadata() or () if key in (TENANT, PRIORITY)}
    if not given:
        return ANYONE
    tenant = given.get(TENANT, "")
    if TENANT in given and not _is_name(tenant):
        raise bad_field(
            TENANT, f"must be 1 to {MAX_TENANT_BYTES} characters of printable ASCII, without spaces"
        )
    priority = given.get(PRIORITY, "interactive")
    if priority not in get_args(Priority):
        raise bad_field(
            PRIORITY, f"is {str(priority)[:64]!r}; it must be one of {', '.join(get_args(Priority))}"
        )
    return Caller(tenant, cast(Priority, priority))


def _is_name(tenant: str) -> bool:
    return 1 <= len(tenant) <= MAX_TENANT_BYTES and all("!" <= character <= "~" for character in tenant)
