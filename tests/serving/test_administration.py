"""Calls that change indexes: a right of their own, and a port of their own where one is given."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cognate.v1 import index_pb2, info_pb2
from serving import access
from tests.serving.servers import Running, Stubs, failure
from tests.serving.test_access import ENCODE, bearing, write_keys

Serve = Callable[..., Running]
CHANGE = index_pb2.ListIndexesRequest()
ADMIN, USER = bearing("admin"), bearing("user")


@pytest.fixture(autouse=True)
def _listing_needs_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """ListIndexes stands for a method that changes indexes, so that the tests need not change one."""
    monkeypatch.setitem(access._RIGHTS, "IndexService/ListIndexes", "admin")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(
        tmp_path / "keys.toml",
        {
            "admin": {"rights": {"admin"}},
            "user": {"rights": {"encode", "search"}},
            "of-faq": {"rights": {"admin"}, "indexes": {"faq"}},
        },
    )


@pytest.fixture
def apart(serve: Serve, keys: Path) -> Running:
    return serve(keys=keys, admin_port=0)


@pytest.fixture
def administration(apart: Running) -> Iterator[Stubs]:
    with grpc.insecure_channel(f"127.0.0.1:{apart.server.admin_port}") as channel:
        yield Stubs(channel)


def test_it_needs_the_right(serve: Serve, keys: Path) -> None:
    stubs = serve(keys=keys).stubs
    assert stubs.list_indexes(CHANGE, timeout=60, metadata=ADMIN).indexes
    refused = failure(stubs.list_indexes, CHANGE, metadata=USER)
    assert refused.code == grpc.StatusCode.PERMISSION_DENIED
    assert refused.reason == "NOT_PERMITTED"


def test_a_key_for_some_indexes_cannot_change_all(serve: Serve, keys: Path) -> None:
    refused = failure(serve(keys=keys).stubs.list_indexes, CHANGE, metadata=bearing("of-faq"))
    assert refused.reason == "NOT_PERMITTED"
    assert "is for the indexes faq" in refused.message


def test_with_a_port_of_its_own_it_is_there_and_nowhere_else(apart: Running, administration: Stubs) -> None:
    assert administration.list_indexes(CHANGE, timeout=60, metadata=ADMIN).indexes
    refused = failure(apart.stubs.list_indexes, CHANGE, metadata=ADMIN)
    assert refused.code == grpc.StatusCode.PERMISSION_DENIED
    assert "administered on another port" in refused.message


def test_the_other_port_needs_keys_too_and_answers_nothing_else(administration: Stubs) -> None:
    assert failure(administration.list_indexes, CHANGE).reason == "BAD_KEY"
    assert failure(administration.list_indexes, CHANGE, metadata=USER).reason == "NOT_PERMITTED"
    assert failure(administration.encode, ENCODE, metadata=USER).code == grpc.StatusCode.UNIMPLEMENTED
    assert administration.get_info(info_pb2.GetInfoRequest(), timeout=60, metadata=ADMIN).model.name
    health = health_pb2_grpc.HealthStub(administration.channel).Check
    assert health(health_pb2.HealthCheckRequest(), timeout=60).status == 1
