"""Models, bundles and data that the tests share: made once a session, in folders of the session's own."""

import os
import signal
import socket
import string
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.peer import Driven, Peer, Served

# Before any library asks a hub: the tests have no network.
os.environ["HF_HUB_OFFLINE"] = "1"

# A job in a shell's background ignores Ctrl-C, and what it starts would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example is timed: other tests run beside it.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

QUORA = Path(__file__).resolve().parents[2] / "shared/data/quora"
SAMPLE = Path(__file__).resolve().parents[1] / "cognate/sample"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the GPU tests, with the reason, where there is no GPU."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def quora() -> Path:
    """The folder of real questions; tests that need it skip where it is not there."""
    if not QUORA.is_dir():
        pytest.skip("../shared/data/quora is not there")
    return QUORA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder of a two-layer BERT with random weights: 32 dimensions, 64 tokens."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["how", "do", "i", "the", "reset", "password", "printer", "what", "is", "door", "open", "learn"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    (folder / "vocab.txt").write_text("\n".join([*vocabulary, *(w for w in words if w not in vocabulary)]))
    torch.manual_seed(1)
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # Larger than BERT's, so that random weights tell texts apart.
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder / "transformer")
    tokenizer.save_pretrained(folder / "transformer")
    transformer = Transformer(str(folder / "transformer"), max_seq_length=64)
    model = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension()), Normalize()], device="cpu"
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's bundle."""
    import exporter

    return exporter.export(tiny_model, tmp_path_factory.mktemp("bundles") / "tiny").folder


@pytest.fixture(scope="session")
def minilm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of all-MiniLM-L6-v2 as published."""
    import exporter

    return exporter.export("minilm", tmp_path_factory.mktemp("bundles") / "minilm").folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    yield from _disk(tmp_path / "disk", "64k")


@pytest.fixture
def medium_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    yield from _disk(tmp_path / "disk", "8m")


def _disk(disk: Path, size: str) -> Iterator[Path]:
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture
def served() -> Iterator[Served]:
    """A peer that misbehaves on order, on a socket."""
    served = Served()
    yield served
    served.peer.gate.set()
    served.server.stop(None).wait()


@pytest.fixture
def peer(served: Served) -> Peer:
    """The peer itself."""
    return served.peer


@pytest.fixture
def closed_port() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients, of the one kind and the other, and closes them."""
    from cognate import Client

    clients: list[Any] = []

    def make(target: str, **settings: Any) -> Any:
        clients.append((Client if request.param == "sync" else Driven)(target, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., Any], served: Served) -> Any:
    """A client of the peer."""
    return connect(served.target)
