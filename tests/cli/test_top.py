"""``cognate top``: what a server does, as it does it."""

import json
import math
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cognate.cli.top import Reading, quantile, view
from cognate.encoder import Encoder
from cognate.v1 import embedding_pb2, search_pb2
from serving import Settings
from tests.serving.servers import RECORDS, Running, failure, write_index


@pytest.fixture(scope="module")
def running(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    index = write_index(tmp_path_factory.mktemp("top") / "index", Encoder(tiny_bundle), RECORDS)
    server = Running(
        Settings.load(bundle=tiny_bundle, indexes={"faq": index}, port=0, metrics_port=0, device="cpu")
    )
    yield server
    server.stop()


@pytest.fixture
def target(running: Running) -> str:
    return f"localhost:{running.server.metrics_port}"


@pytest.fixture
def busy(running: Running) -> Iterator[None]:
    """Calls of every kind, without a pause."""
    told_to_stop, ran = threading.Event(), threading.Event()
    search = search_pb2.SearchRequest(queries=[search_pb2.Query(text="door")], top_k=1)

    def call() -> None:
        while not told_to_stop.is_set():
            running.stubs.encode(embedding_pb2.EncodeRequest(texts=["open", "open the door"]), timeout=60)
            running.stubs.search(search, timeout=60)
            failure(running.stubs.encode, embedding_pb2.EncodeRequest())
            ran.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert ran.wait(60)
    yield
    told_to_stop.set()
    thread.join()


@pytest.mark.usefixtures("busy")
def test_one_interval_as_json(cognate: Callable, target: str) -> None:
    finished = cognate("top", "--target", target, "--once", "--json", "--interval", 1)
    assert finished.code == 0, finished
    seen = json.loads(finished.out)
    encode, search = seen["methods"]["Encode"], seen["methods"]["Search"]
    assert encode["calls_per_second"] > encode["errors_per_second"] > 0
    assert search["calls_per_second"] > search["errors_per_second"] == 0
    assert 0 < search["p50_ms"] <= search["p99_ms"]
    assert all(0 < times["p50_ms"] <= times["p99_ms"] for times in seen["phases"].values())
    assert list(seen["phases"]) == ["tokenize", "queue", "encode", "search"]
    assert seen["codes_per_second"]["INVALID_ARGUMENT"] > 0
    assert seen["batch_texts"] >= 1
    assert 0 < seen["padding_share"] < 1
    assert 0 < seen["model_busy_share"] <= 1.1
    # The same query, again and again.
    assert seen["cache_hit_rate"] > 0.5
    assert seen["memory_bytes"] > 10e6
    assert seen["indexes"]["faq"]["records"] == len(RECORDS)
    assert seen["server"]["device"] == "cpu"


@pytest.mark.usefixtures("busy")
def test_one_interval_for_a_person(cognate: Callable, target: str) -> None:
    finished = cognate("top", "--target", target, "--once", "--interval", 1)
    assert finished.code == 0, finished
    for word in ("Encode", "Search", "tokenize", "faq", "flat", "padding", "INVALID_ARGUMENT", "MiB"):
        assert word in finished.out


def test_a_server_that_does_nothing(cognate: Callable, target: str) -> None:
    seen = json.loads(cognate("top", "--target", target, "--once", "--json", "--interval", 0.1).out)
    assert seen["phases"]["encode"] == {"p50_ms": None, "p99_ms": None}
    assert seen["batch_texts"] is None
    assert seen["padding_share"] is None
    assert seen["texts_per_second"] == 0


def test_a_port_that_does_not_answer_is_one_sentence(cognate: Callable) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        sentence = cognate("top", "--target", target, "--once").check_one_line_error()
    assert f"no metrics can be read from {target}: Connection refused" in sentence
    assert "--metrics-port" in sentence


def test_the_port_that_takes_calls_is_not_the_one(cognate: Callable, running: Running) -> None:
    sentence = cognate("top", "--target", running.server.address, "--once").check_one_line_error()
    assert "publishes no metrics of cognate" in sentence


@pytest.mark.parametrize("target", ["localhost:port", "nohost.invalid:1"])
def test_a_target_that_is_none_is_one_sentence(cognate: Callable, target: str) -> None:
    cognate("top", "--target", target, "--once").check_one_line_error()


def test_ctrl_c_ends_it_silently(target: str) -> None:
    command = [sys.executable, "-m", "cognate", "top", "--target", target, "--json", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        # It goes on from one interval to the next.
        for _ in range(2):
            assert json.loads(process.stdout.readline())["seconds"] >= 0.1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == b""


def reading(text: str, at: float) -> Reading:
    return Reading(
        (sample for family in text_string_to_metric_families(text) for sample in family.samples), at
    )


PUBLISHED = """
cognate_server_info{{version="1",worker="0"}} 1
process_start_time_seconds{{worker="0"}} {started}
process_start_time_seconds{{worker="1"}} 100
cognate_calls_total{{method="Encode",code="OK",worker="0"}} {calls}
cognate_calls_total{{method="Encode",code="OK",worker="1"}} {calls}
cognate_batch_seconds_total{{worker="0"}} {calls}
cognate_batch_seconds_total{{worker="1"}} {calls}
cognate_query_cache_hits_total{{worker="0"}} {hits}
cognate_query_cache_misses_total{{worker="0"}} 10
"""


def test_rates_are_of_the_interval_and_workers_add_up() -> None:
    before = reading(PUBLISHED.format(started=100, calls=50, hits=0), 10.0)
    seen = view(before, reading(PUBLISHED.format(started=100, calls=60, hits=30), 12.0))
    assert seen.seconds == 2
    assert seen.methods["Encode"].calls_per_second == 10
    assert seen.cache_hit_rate == 1


def test_workers_that_are_all_busy_all_the_time_are_no_busier_than_that() -> None:
    before = reading(PUBLISHED.format(started=100, calls=50, hits=0), 10.0)
    seen = view(before, reading(PUBLISHED.format(started=100, calls=52, hits=0), 12.0))
    assert seen.model_busy_share == 1


def test_a_worker_started_anew_has_counted_since_then() -> None:
    before = reading(PUBLISHED.format(started=100, calls=50, hits=0), 10.0)
    seen = view(before, reading(PUBLISHED.format(started=200, calls=60, hits=30), 12.0))
    # 60 of the one, 10 of the other.
    assert seen.methods["Encode"].calls_per_second == 35
    assert seen.cache_hit_rate == 0.75


@given(st.lists(st.floats(0, 20), min_size=1), st.floats(0.01, 0.99))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.5, 1.0, 2.0, 5.0, 10.0, math.inf]
    buckets = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    got = quantile(buckets, share)
    assert got is not None
    true = float(np.quantile(values, share, method="inverted_cdf"))
    position = next(number for number, bound in enumerate(bounds) if true <= bound)
    low = bounds[position - 1] if position else 0.0
    assert low <= got <= min(bounds[position], 10.0)


def test_a_percentile_of_nothing_is_none() -> None:
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, math.inf: 0.0}, 0.5) is None
