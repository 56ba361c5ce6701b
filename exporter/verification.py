"""``verify``: is a bundle what its manifest says, and are its vectors those of a model?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cognate import models
from cognate.bundle import Bundle, Parity, fingerprint_of
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, ModelError
from exporter.parity import MIN_COSINE, measure_parity, parity_texts

EVERY_LENGTH = 512
"""Tokens up to which texts of every length are encoded."""

LONGEST = 2048
"""Words of the one text for a model that reads more: attention to 8,192 tokens would take gigabytes."""

SLACK = 0.001
"""How far the smallest cosine may be below what the manifest says, where that is below ``MIN_COSINE``: what
another processor's arithmetic does to numbers of few bits."""


@dataclass(frozen=True)
class Verification:
    """What was found to be true of a bundle.

    Attributes:
        files: How many were compared with the manifest.
        size: Of them together, in bytes.
        fingerprint: Computed anew, and the manifest's.
        texts: How many were encoded, each to a finite vector of unit length.
        parity: How near the vectors are to the model's that was given; None where none was.
    """

    files: int
    size: int
    fingerprint: str
    texts: int
    parity: Parity | None


def verify(folder: str | Path, against: str | None = None) -> Verification:
    """Compare a bundle with its manifest, run it, and compare its vectors with a model's.

    Args:
        folder: The bundle.
        against: A checkpoint, a sentence-transformers folder, a model name or a Hugging Face id, which torch
            runs; None compares with none.

    Returns:
        What was found.

    Raises:
        ArtifactError: A file or the fingerprint is not the manifest's, or the graph does not give vectors.
        ModelError: The model cannot be loaded, or its vectors are others.
    """
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    fingerprint = fingerprint_of(bundle.folder, max_length=manifest.max_length, prompts=manifest.prompts)
    if fingerprint != manifest.fingerprint:
        raise ArtifactError(
            f"{folder} has the fingerprint {fingerprint[:12]}… where its manifest says "
            f"{manifest.fingerprint[:12]}…; export it again"
        )
    encoder = Encoder(bundle, device="cpu")
    texts = texts_up_to(manifest.max_length)
    embeddings = encoder.encode(texts)
    _check_vectors(bundle, encoder, texts, embeddings)
    return Verification(
        files=len(manifest.files),
        size=sum(digest.size for digest in manifest.files.values()),
        fingerprint=fingerprint,
        texts=len(texts),
        parity=None if against is None else _compare(bundle, against, texts, embeddings),
    )


def texts_up_to(max_length: int) -> list[str]:
    """The parity texts for a model, in a number that a model of any length gets through.

    Args:
        max_length: Tokens that it reads of a text.
    """
    texts = parity_texts(min(max_length, EVERY_LENGTH))
    return texts if max_length <= EVERY_LENGTH else [*texts, "word " * LONGEST]


def _check_vectors(
    bundle: Bundle, encoder: Encoder, texts: list[str], embeddings: NDArray[np.float32]
) -> None:
    if not np.isfinite(embeddings).all():
        raise ArtifactError(f"{bundle.graph} gives numbers that are not finite; export it again")
    # A text without a token, where the tokenizer adds none, has no direction.
    some = np.array([len(text.ids) > 0 for text in encoder.tokenize(texts)])
    lengths = np.linalg.norm(embeddings[some], axis=1)
    worst = float(np.abs(lengths - 1).max(initial=0))
    if worst > 1e-3:
        raise ArtifactError(
            f"{bundle.graph} gives vectors whose length is off one by {worst:.2g}; export it again"
        )


def _compare(bundle: Bundle, against: str, texts: list[str], ours: NDArray[np.float32]) -> Parity:
    # Seconds to load, and only needed here.
    from sentence_transformers import SentenceTransformer

    model = models.load(
        against,
        lambda name, local: SentenceTransformer(
            name,
            device="cpu",
            trust_remote_code=False,
            local_files_only=local,
            model_kwargs={"use_safetensors": True},
        ),
    )
    manifest = bundle.manifest
    theirs = np.asarray(
        model.float().encode(
            texts, prompt=manifest.prompts.passage, normalize_embeddings=True, show_progress_bar=False
        )
    )
    if theirs.shape != ours.shape:
        raise ModelError(
            f"{against} has {theirs.shape[1]} dimensions and {bundle.folder} {ours.shape[1]}; "
            "they are not the same model"
        )
    parity = measure_parity(theirs, ours)
    said = manifest.parity.min_cosine
    limit = MIN_COSINE if said >= MIN_COSINE else said - SLACK
    if parity.min_cosine < limit:
        raise ModelError(
            f"{bundle.folder} is not {against}: the smallest cosine between their vectors is "
            f"{parity.min_cosine:.6f} where the manifest allows {limit:.6f}"
        )
    return parity
