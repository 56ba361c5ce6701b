"""Real servers in this process, a client of the bare contract, and how a call failed."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from cognate.artifact import publishing
from cognate.bundle import InputType
from cognate.encoder import Encoder, TokenizedText
from cognate.index import IndexWriter
from cognate.milvus.location import MilvusLocation
from cognate.records import Record
from cognate.v1 import embedding_pb2, embedding_pb2_grpc, index_pb2_grpc, info_pb2_grpc, search_pb2_grpc
from serving import Server, Settings
from tests.milvus.collections import publish_records

RECORDS = [
    Record("how do i reset the password", "reset", "r0", {"page": 7, "tags": ["a", None, True], "en": "é"}),
    Record("reset the password of the printer", "reset", "r1", {}),
    Record("what is the printer", None, "r2"),
    Record("open the door", "door", "r3"),
    Record("how do i open the printer door", "door", "r4"),
    Record("learn 3 words", None, None),
]


class Stubs:
    """What a plain gRPC client made from the contract can call."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.encode = embedding_pb2_grpc.EmbeddingServiceStub(channel).Encode
        self.encode_stream = embedding_pb2_grpc.EmbeddingServiceStub(channel).EncodeStream
        self.search = search_pb2_grpc.SearchServiceStub(channel).Search
        self.search_stream = search_pb2_grpc.SearchServiceStub(channel).SearchStream
        self.list_indexes = index_pb2_grpc.IndexServiceStub(channel).ListIndexes
        self.load_index = index_pb2_grpc.IndexServiceStub(channel).LoadIndex
        self.rollback_index = index_pb2_grpc.IndexServiceStub(channel).RollbackIndex
        self.unload_index = index_pb2_grpc.IndexServiceStub(channel).UnloadIndex
        self.get_info = info_pb2_grpc.InfoServiceStub(channel).GetInfo


class Running:
    """A server that runs in a thread of its own until ``stop``.

    Attributes:
        server: The server, started.
        stubs: A client of it.
    """

    def __init__(self, settings: Settings) -> None:
        self.server = Server(settings)
        self._told_to_stop = asyncio.Event()
        self._failure: BaseException | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[started], daemon=True)
        self._thread.start()
        assert started.wait(60)
        if self._failure:
            raise self._failure
        self.channel = grpc.insecure_channel(self.server.address)
        self.stubs = Stubs(self.channel)

    def begin_to_stop(self) -> None:
        """Tell it to stop, and do not wait."""
        self._loop.call_soon_threadsafe(self._told_to_stop.set)

    def stop(self) -> None:
        """Tell it to stop, and wait."""
        if self._thread.is_alive():
            self.begin_to_stop()
            self._thread.join(60)
        assert not self._thread.is_alive()
        self.channel.close()

    def _run(self, started: threading.Event) -> None:
        asyncio.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self.server.start()
        except BaseException as error:
            self._failure = error
            return
        finally:
            started.set()
        await self._told_to_stop.wait()
        await self.server.stop()


class GatedEncoder(Encoder):
    """An encoder whose model waits at a gate, one run at a time, and that tells what it is asked for.

    Attributes:
        gate: The model runs where it is set, as it is at first.
        events: The texts of each tokenisation, and the token ids of each batch as the model gets it.
        batches: The token ids of each batch that the model ran.
        fails_on: The model raises on a batch with this many tokens in a text.
        failure: What it raises.
    """

    made: "GatedEncoder"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.runs_at_once = 1
        self.gate = threading.Event()
        self.gate.set()
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.batches: list[list[list[int]]] = []
        self.fails_on = -1
        self.failure: Exception = RuntimeError("no such operator at 0x7f00")
        GatedEncoder.made = self

    def tokenize(self, texts: Sequence[str], input_type: InputType = "passage") -> list[TokenizedText]:
        tokenized = super().tokenize(texts, input_type)
        self.events.put(("tokenize", list(texts)))
        return tokenized

    def forward(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        self.events.put(("forward", [list(ids) for ids in batch]))
        assert self.gate.wait(60)
        self.batches.append([list(ids) for ids in batch])
        if self.fails_on in map(len, batch):
            raise self.failure
        return super().forward(batch)

    def wait_for(self, kind: str) -> Any:
        """Wait until the next tokenisation or batch, and give it."""
        while True:
            happened, what = self.events.get(timeout=60)
            if happened == kind:
                return what

    def forget(self) -> None:
        """Forget what has happened so far."""
        self.batches.clear()
        while not self.events.empty():
            self.events.get()


def serve_with_small_limits(bundle: Path, index: Any) -> Running:
    """A server with two indexes of the same records."""
    settings = Settings.load(
        bundle=bundle,
        indexes={"default": index, "other": index},
        port=0,
        device="cpu",
        max_texts=50,
        max_text_bytes=1000,
        max_top_k=20,
        max_message_bytes=200_000,
    )
    return Running(settings)


def write_index(folder: Path, encoder: Encoder, records: Sequence[Record]) -> Path:
    with publishing(folder, "index") as partial, IndexWriter(partial, encoder.dimension) as writer:
        writer.add(records, encoder.encode([record.text for record in records]))
        writer.finish(encoder.bundle)
    return folder


def write_to_milvus(
    alias: MilvusLocation, encoder: Encoder, records: Sequence[Record], *, force: bool = False
) -> MilvusLocation:
    """Publish an index in Milvus, beside whose file there is room for a note."""
    vectors = encoder.encode([record.text for record in records])
    note = Path(alias.server).parent / "note"
    return publish_records(alias, encoder.bundle, records, vectors, note=note, force=force)


def version_records(version: str) -> list[Record]:
    """Records of the same texts in each version of an index, whose ids say which version they are of."""
    return [Record(record.text, None, f"{version}/{row}") for row, record in enumerate(RECORDS)]


def eventually(happens: Callable[[], object]) -> None:
    """Wait until something that other threads bring about has happened."""
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Failure:
    """The status that a call ended in.

    Attributes:
        code: gRPC's.
        message: The sentence.
        reason: Of the ErrorInfo; empty where there is none.
        fields: Of the BadRequest.
        retry_seconds: Of the RetryInfo; None where there is none.
        metadata: Of the ErrorInfo.
    """

    def __init__(self, error: grpc.RpcError) -> None:
        self.code = error.code()
        self.message = error.details()
        self.reason = ""
        self.fields: list[str] = []
        self.retry_seconds: float | None = None
        self.metadata: dict[str, str] = {}
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            for message in (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            ):
                if detail.Unpack(message):
                    self._read(message)

    def _read(self, detail: Message) -> None:
        if isinstance(detail, error_details_pb2.ErrorInfo):
            assert detail.domain == "cognate"
            self.reason = detail.reason
            self.metadata = dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            self.fields = [violation.field for violation in detail.field_violations]
        elif isinstance(detail, error_details_pb2.RetryInfo):
            self.retry_seconds = detail.retry_delay.ToTimedelta().total_seconds()


def failure(method: Callable[..., Any], request: Any, **options: Any) -> Failure:
    """Make a call that must fail, and give how it did."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=options.pop("timeout", 60), **options)
    return Failure(caught.value)


def until_let_in(stubs: Stubs) -> None:
    """Call until there is room: a call is over once its answer is sent, which its client may know first."""
    call = stubs.encode.future(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60)
    while error := call.exception():
        assert Failure(error).reason == "TOO_MANY_CALLS"
        call = stubs.encode.future(embedding_pb2.EncodeRequest(texts=["open"]), timeout=60)
    assert call.result().embeddings
