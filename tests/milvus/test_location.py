"""Where an index in Milvus is, as users write it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.errors import CognateError
from cognate.milvus.location import MilvusLocation, MilvusOptions
from cognate.searchable import index_location


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("milvus://db.local:19530/faq", MilvusLocation("db.local:19530", "faq")),
        ("milvus://[::1]:19530/faq", MilvusLocation("[::1]:19530", "faq")),
        ("milvus+tls://db.local:443/base/faq", MilvusLocation("db.local:443", "faq", "base", True)),
        ("milvus:here/milvus.db/faq", MilvusLocation("here/milvus.db", "faq")),
        ("milvus:///srv/milvus.db/faq", MilvusLocation("/srv/milvus.db", "faq")),
    ],
)
def test_a_location_is_read_and_written(text: str, location: MilvusLocation) -> None:
    assert index_location(text) == location
    assert index_location(str(location)) == location


@pytest.mark.parametrize(
    "text",
    [
        "milvus:",
        "milvus://",
        "milvus://host/faq",
        "milvus://host:19530",
        "milvus://host:19530/",
        "milvus://host:19530/a/b/c",
        "milvus://host:19530/f-a-q",
        "milvus:file/faq",
        "milvus:file.db",
        "milvus+ssl://host:1/faq",
        'milvus://host:1/faq" or true',
    ],
)
def test_what_is_no_location_is_refused(text: str) -> None:
    with pytest.raises(CognateError, match="this is no index in Milvus; write milvus://HOST:PORT/COLLECTION"):
        index_location(text)


def test_a_password_in_a_location_is_refused_and_not_shown() -> None:
    with pytest.raises(CognateError, match="COGNATE_MILVUS_TOKEN") as refused:
        index_location("milvus://root:hunter2@host:19530/faq")
    assert "hunter2" not in str(refused.value)


@given(st.text(st.sampled_from("milvus+t:/@._-[]0123abAB db"), max_size=30))
def test_what_is_read_is_written_the_same(text: str) -> None:
    with contextlib.suppress(CognateError):
        location = index_location(f"milvus{text}")
        assert index_location(str(location)) == location


def test_options_come_from_the_environment_and_never_show_the_token() -> None:
    options = MilvusOptions.from_environment(
        {
            "COGNATE_MILVUS_TOKEN": "root:hunter2",
            "COGNATE_MILVUS_CONSISTENCY": "strong",
            "COGNATE_MILVUS_TIMEOUT": "0.5",
        }
    )
    assert (options.token, options.consistency, options.timeout) == ("root:hunter2", "strong", 0.5)
    assert "hunter2" not in repr(options)
    for name, value in (("CONSISTENCY", "weak"), ("TIMEOUT", "0"), ("TIMEOUT", "soon")):
        with pytest.raises(CognateError, match=f"COGNATE_MILVUS_{name} is '{value}'; give"):
            MilvusOptions.from_environment({f"COGNATE_MILVUS_{name}": value})
