"""Filters, groups, pages, records left out and records searched with, over a real socket."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cognate import Client, Combined, Like
from cognate.encoder import Encoder
from cognate.errors import CognateError
from cognate.filters import And, Exists, Filter, In, Not, Or, Prefix, Range, parse
from cognate.records import Record
from cognate.v1 import embedding_pb2, filter_pb2, search_pb2
from cognate.wire import filter_message
from serving.filter_messages import read_filter
from tests.milvus.collections import lite, publish_records
from tests.peer import Driven
from tests.serving.servers import Running, Stubs, failure, write_index, write_to_milvus
from tests.test_filters import FILTERS

Query = search_pb2.Query
QueryPart = search_pb2.QueryPart
CombinedQuery = search_pb2.CombinedQuery

RECORDS = [
    Record("reset the password", "reset", "r0", {"lang": "en", "year": 2019, "author": {"name": "Ann"}}),
    Record("how do i reset a password", "reset", "r1", {"lang": "en", "year": 2024}),
    Record("passwort", "reset", "r2", {"lang": "de", "year": "2024", "draft": True}),
    Record("open the door", "door", "r3", {"lang": "en", "year": 2026.5, "draft": False}),
    Record("how do i open the door", "door", "r4"),
    Record("what is the printer", None, "r5", {"lang": None, "big": 2**53 + 1}),
]


@pytest.fixture(scope="module", params=["folder", "milvus"])
def server(
    request: pytest.FixtureRequest, bundle: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    from serving import Settings

    folder = tmp_path_factory.mktemp("narrowed")
    with lite(folder) as alias:
        indexes: dict[str, Any]
        if request.param == "milvus":
            zeros = np.zeros((1, encoder.dimension), np.float32)
            write_to_milvus(alias, encoder, RECORDS)
            publish_records(
                alias.of("zeros"), encoder.bundle, [Record("nothing", None, "z")], zeros, note=folder / "note"
            )
            indexes = {"default": alias, "zeros": alias.of("zeros")}
        else:
            with_zeros(folder / "zeros", encoder)
            indexes = {
                "default": write_index(folder / "index", encoder, RECORDS),
                "zeros": folder / "zeros",
            }
        running = Running(Settings.load(bundle=bundle, indexes=indexes, port=0, device="cpu", max_top_k=20))
        yield running
        running.stop()


def with_zeros(folder: Path, encoder: Encoder) -> None:
    from cognate.artifact import publishing
    from cognate.index import IndexWriter

    with publishing(folder, "index") as partial, IndexWriter(partial, encoder.dimension) as writer:
        writer.add([Record("nothing", None, "z")], np.zeros((1, encoder.dimension), np.float32))
        writer.finish(encoder.bundle)


@pytest.fixture
def stubs(server: Running) -> Stubs:
    return server.stubs


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: Running) -> Iterator[Any]:
    made = (Client if request.param == "sync" else Driven)(server.server.address, timeout=60)
    yield made
    made.close()


def search(stubs: Stubs, **fields: Any) -> search_pb2.SearchResponse:
    fields = {"queries": [Query(text="password")], "top_k": 6, **fields}
    response: search_pb2.SearchResponse = stubs.search(search_pb2.SearchRequest(**fields), timeout=60)
    return response


def ids(result: search_pb2.QueryHits) -> list[str]:
    return [hit.id for hit in result.hits]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('lang = "en"', "r0 r1 r3"),
        ('lang != "en"', "r2 r4 r5"),
        ('lang = "en" and year >= 2020', "r1 r3"),
        ("year > 2019 and year < 2026.5", "r1"),
        # A string is no number.
        ('year = "2024"', "r2"),
        ("year in (2019, 2024)", "r0 r1"),
        ("draft = true", "r2"),
        ("exists draft", "r2 r3"),
        # A null is not there.
        ("exists lang", "r0 r1 r2 r3"),
        ('author.name prefix "A"', "r0"),
        ('label in ("door")', "r3 r4"),
        ("not exists label", "r5"),
        ('not (label = "reset" or lang = "en")', "r4 r5"),
        (f"big = {2**53 + 1}", "r5"),
        (f"big = {2**53}", ""),
        ("nowhere = 1", ""),
    ],
)
def test_only_records_that_match_are_found(client: Any, text: str, expected: str) -> None:
    everything = [hit.id for hit in client.search("password", 6)]
    found = [hit.id for hit in client.search("password", 6, filter=text)]
    assert found == [identifier for identifier in everything if identifier in expected.split()]
    assert sorted(found) == expected.split()
    assert [hit.id for hit in client.search("password", 6, filter=parse(text))] == found


def test_min_score_and_a_filter_hold_together(stubs: Stubs) -> None:
    chosen = filter_message('lang = "en"')
    scores = [hit.score for hit in search(stubs, filter=chosen).results[0].hits]
    assert len(search(stubs, filter=chosen, min_score=scores[1]).results[0].hits) == 2


def test_a_group_is_one_hit_a_label(client: Any) -> None:
    def found(top_k: int, **arguments: Any) -> list[str]:
        return [hit.id for hit in client.search("open the door", top_k, **arguments)]

    labels = {record.id: record.label for record in RECORDS}
    best = list({labels[identifier]: identifier for identifier in reversed(found(6))}.values())[::-1]
    assert sorted(found(6, group_by_label=True)) == sorted(best)
    best = found(6, group_by_label=True)
    assert len(best) == 3
    assert found(2, group_by_label=True) == best[:2]
    assert found(2, group_by_label=True, offset=1) == best[1:]


def test_pages_are_the_list_in_parts(client: Any) -> None:
    everything = [hit.id for hit in client.search("password", 6)]
    pages = [[hit.id for hit in client.search("password", 2, offset=first)] for first in (0, 2, 4, 6)]
    assert pages == [everything[:2], everything[2:4], everything[4:], []]


def test_excluded_ids_are_not_found(client: Any) -> None:
    everything = [hit.id for hit in client.search("password", 6)]
    found = client.search("password", 3, exclude_ids=[everything[0], everything[2], "nobody"])
    assert [hit.id for hit in found] == [everything[1], *everything[3:5]]


def test_what_is_like_a_record_does_not_have_the_record_itself(client: Any, encoder: Encoder) -> None:
    vectors = encoder.encode([record.text for record in RECORDS])
    order = np.argsort(-(vectors @ vectors[3]), kind="stable")
    found = client.search(Like("r3"), 6)
    assert [hit.id for hit in found] == [f"r{row}" for row in order if row != 3]
    assert found[0].score == pytest.approx(vectors[3] @ vectors[order[1]], abs=1e-5)
    first, second, third = client.search_many(["password", Like("r0"), vectors[3]], 6, exclude_ids=["r5"])
    assert [len(hits) for hits in (first, second, third)] == [5, 4, 5]
    assert "r0" not in [hit.id for hit in second]
    assert third[0].id == "r3"


def test_several_texts_vectors_and_records_are_one_query(client: Any, encoder: Encoder) -> None:
    vectors = encoder.encode([record.text for record in RECORDS])
    text, other = encoder.encode(["password", "the door"], "query")
    combined = Combined(["password", 7 * vectors[2], Like("r3"), "the door"], [1, 0.5, 2, -0.25])
    wanted = text + 0.5 * vectors[2] + 2 * vectors[3] - 0.25 * other
    scores = vectors @ wanted / np.linalg.norm(wanted)
    order = [f"r{row}" for row in np.argsort(-scores, kind="stable") if row != 3]
    plain, hits, away = client.search_many(
        ["password", combined, Combined(["password"], [-3])], 6, exclude_ids=["r5"]
    )
    assert [hit.id for hit in hits] == [name for name in order if name != "r5"]
    assert hits[0].score == pytest.approx(
        max(s for row, s in enumerate(scores) if row not in (3, 5)), abs=1e-5
    )
    assert [hit.id for hit in away] == [hit.id for hit in reversed(plain)]
    assert client.search(Combined(["password"] * 2), 1)[0].id == plain[0].id


def test_the_texts_of_a_combined_query_are_told_together(stubs: Stubs) -> None:
    parts = [QueryPart(text="password"), QueryPart(text="the door " * 100), QueryPart(id="r0")]
    request = search_pb2.SearchRequest(
        queries=[Query(combined=CombinedQuery(parts=parts)), Query(text="password")], top_k=1
    )
    both, one = stubs.search(request, timeout=60).results
    assert both.usage.tokens == one.usage.tokens + 64
    assert both.usage.truncated


@pytest.mark.parametrize(
    ("parts", "field", "says"),
    [
        ([], "queries[0].combined.parts", "has 0; it must have 1 to 32"),
        ([QueryPart(text="a")] * 33, "queries[0].combined.parts", "has 33"),
        ([QueryPart(text="a"), QueryPart()], "queries[0].combined.parts[1]", "has neither a text nor"),
        ([QueryPart(text="a", weight=0)], "queries[0].combined.parts[0].weight", "is 0; it must be -1000"),
        ([QueryPart(text="a", weight=float("nan"))], "queries[0].combined.parts[0].weight", "is nan"),
        ([QueryPart(text=" ")], "queries[0].combined.parts[0].text", "is empty"),
        (
            [QueryPart(text="a"), QueryPart(text="a", weight=-1)],
            "queries[0].combined",
            "adds up to zero, which has no direction",
        ),
        ([QueryPart(id="r9")], "queries[0].combined.parts[0].id", "no record with the id 'r9'"),
    ],
)
def test_what_is_wrong_with_a_combined_query_is_told(
    stubs: Stubs, parts: list[search_pb2.QueryPart], field: str, says: str
) -> None:
    request = search_pb2.SearchRequest(queries=[Query(combined=CombinedQuery(parts=parts))], top_k=1)
    refused = failure(stubs.search, request)
    assert refused.fields == [field]
    assert says in refused.message


def test_a_record_that_is_not_there_is_named(client: Any, stubs: Stubs) -> None:
    with pytest.raises(CognateError, match=r"queries\[1\].id: the index has no record with the id 'r9'"):
        client.search_many(["password", Like("r9")], 3)
    request = search_pb2.SearchRequest(queries=[Query(id="x" * 1000)], top_k=1)
    refused = failure(stubs.search, request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "NO_SUCH_RECORD")
    assert refused.fields == ["queries[0].id"]
    assert len(refused.message) < 200
    request = search_pb2.SearchRequest(queries=[Query(id="z")], top_k=1, index="zeros")
    assert "has no direction" in failure(stubs.search, request).message


def equals(field: str, *values: filter_pb2.FilterValue) -> filter_pb2.Filter:
    return filter_pb2.Filter(equals=filter_pb2.FilterEquals(field=field, values=values))


ONE = filter_pb2.FilterValue(integer=1)


def nested(levels: int) -> filter_pb2.Filter:
    inner = equals("a", ONE)
    for _ in range(levels):
        inner = filter_pb2.Filter(none=filter_pb2.FilterList(filters=[inner]))
    return inner


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"filter": filter_pb2.Filter()}, "filter", "has no condition"),
        ({"filter": equals("a")}, "filter", "list for a is empty"),
        ({"filter": equals("", ONE)}, "filter.equals.field", "needs a field at its end"),
        ({"filter": equals("a b", ONE)}, "filter.equals.field", "nothing more at 'b'"),
        ({"filter": equals("label", ONE)}, "filter", "compares the label, a string, with 1"),
        ({"filter": equals("a", filter_pb2.FilterValue())}, "filter.equals.values[0]", "has no value"),
        (
            {"filter": equals("a", filter_pb2.FilterValue(number=float("nan")))},
            "filter",
            "give a finite number",
        ),
        (
            {
                "filter": filter_pb2.Filter(
                    any=filter_pb2.FilterList(filters=[equals("a", ONE), nested(0)] * 65)
                )
            },
            "filter",
            "has 130 conditions",
        ),
        ({"filter": nested(17)}, "filter", "nested deeper than 16"),
        (
            {"filter": filter_pb2.Filter(all=filter_pb2.FilterList(filters=[filter_pb2.Filter()]))},
            "filter.all.filters[0]",
            "has no condition",
        ),
        ({"filter": filter_pb2.Filter(range=filter_pb2.FilterRange(field="a"))}, "filter", "has no bound"),
        # Longer than the metadata that a client takes.
        ({"filter": equals(".".join(['"' + "é" * 128 + '"'] * 16))}, "filter", "list for "),
        ({"offset": 15}, "offset", "is 15; with top_k it may be up to 20"),
        ({"offset": 2**32 - 1}, "offset", "with top_k it may be up to 20"),
        ({"exclude_ids": ["x"] * 1001}, "exclude_ids", "has 1001; a search leaves out up to 1000"),
    ],
)
def test_what_cannot_be_searched_names_its_field(
    stubs: Stubs, fields: dict[str, Any], field: str, says: str
) -> None:
    request = search_pb2.SearchRequest(**{"queries": [Query(text="a")], "top_k": 6, **fields})
    refused = failure(stubs.search, request)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == [field]
    assert says in refused.message


def test_a_message_nested_deeper_than_protobuf_reads_is_refused(stubs: Stubs) -> None:
    def field(number: int, content: bytes) -> bytes:
        head, size = (number << 3) | 2, len(content)
        varints = [bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14]) for value in (head, size)]
        return b"".join(varints) + content

    # Bytes, for Python's protobuf writes no such message either.
    inner = equals("a", ONE).SerializeToString()
    for _ in range(200):
        inner = field(3, field(1, inner))
    call = stubs.channel.unary_unary("/cognate.v1.SearchService/Search")
    request = search_pb2.SearchRequest(queries=[Query(text="a")], top_k=1).SerializeToString()
    assert call(request + field(21, equals("a", ONE).SerializeToString()), timeout=60)
    assert failure(call, request + field(21, inner)).reason == "BAD_MESSAGE"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"filter": "lang ="}, "needs a string in double quotes"),
        ({"filter": In(("a",), ())}, "list for a is empty"),
        ({"offset": -1}, "offset is -1; it must be a whole number, 0 to"),
        ({"exclude_ids": "r1"}, "exclude_ids is a string"),
        ({"exclude_ids": [1]}, r"exclude_ids\[0\] has an id of type int"),
    ],
)
def test_a_client_refuses_what_cannot_be_sent(client: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CognateError, match=says):
        client.search("password", 3, **arguments)


def test_filters_survive_the_wire() -> None:
    from hypothesis import given

    @given(FILTERS)
    def survives(filter: Filter) -> None:  # noqa: A002
        assert repr(read_filter("filter", filter_message(filter))) == repr(filter)

    survives()
    many = Not(Or((Exists(("a",)), And((Prefix((), "x"), Range(("b", "c"), above=1, at_most=2.5))))))
    assert read_filter("filter", filter_message(many)) == many


def test_a_long_list_of_ids_leaves_room_for_the_queries(
    serve: Callable[..., Running], encoder: Encoder, tmp_path: Path
) -> None:
    folder = write_index(tmp_path / "index", encoder, RECORDS)
    running = serve(indexes={"default": folder}, max_message_bytes=20_000)
    with Client(running.server.address, timeout=60) as client:
        ids = [f"{number:03}{'x' * 10}" for number in range(900)]
        texts = [f"open the door {number} {'x' * 300}" for number in range(40)]
        assert all(len(hits) == 2 for hits in client.search_many(texts, 2, exclude_ids=ids))


def test_embeddings_and_ids_go_together_in_a_stream(stubs: Stubs) -> None:
    chunk = search_pb2.SearchStreamRequest(
        id=7,
        request=search_pb2.SearchRequest(
            queries=[Query(id="r0")], top_k=1, input_type=embedding_pb2.INPUT_TYPE_QUERY
        ),
    )
    (answer,) = stubs.search_stream(iter([chunk]), timeout=60)
    assert ids(answer.response.results[0]) != ["r0"]
