"""``exporter.export`` in every precision: what is lost is measured, held low, told, and gated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import exporter
from cognate.bundle import Bundle, BundleManifest
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError, ModelError
from cognate.evaluation import evaluate, read_queries_and_index
from cognate.providers import BF16_PROCESSOR
from exporter import half_precision
from exporter.parity import LIMITS, figures_of, losses, measure_parity
from exporter.processor_target import BF16_FLAGS, choose_target, this_processor
from tests.conftest import SAMPLE
from tests.openvino import has_openvino

TEXTS = [
    "how do i reset the password",
    "door",
    "",
    "what is the printer " * 40,
    "🙂 怎样",
    "learn the open door",
]
LOOSE = ("min_cosine", "mean_cosine", "top_10_overlap")


@pytest.fixture(scope="module")
def minilm_int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exporter.export("minilm", tmp_path_factory.mktemp("int8") / "dynamic", precision="int8")


@pytest.fixture(scope="module")
def minilm_static(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exporter.export(
        "minilm",
        tmp_path_factory.mktemp("int8") / "static",
        precision="int8",
        calibrate=SAMPLE / "index.jsonl",
    )


def test_int8_is_near_torch_on_texts_it_was_not_calibrated_with(
    minilm_bundle: Path, minilm_int8: Bundle, minilm_static: Bundle, quora: Path
) -> None:
    queries, _ = read_queries_and_index(quora / "queries.jsonl", quora / "queries.jsonl")
    texts = [query.text for query in queries[:500]]
    theirs = Encoder(minilm_bundle).encode(texts)
    for bundle in (minilm_int8, minilm_static):
        cosines = (Encoder(bundle).encode(texts) * theirs).sum(axis=1)
        assert cosines.mean() >= 0.998
        assert cosines.min() >= LIMITS["int8"]["min_cosine"]


@has_openvino
def test_openvino_takes_static_int8_too(minilm_bundle: Path, minilm_static: Bundle, quora: Path) -> None:
    queries, _ = read_queries_and_index(quora / "queries.jsonl", quora / "queries.jsonl")
    texts = [query.text for query in queries[:200]]
    encoder = Encoder(minilm_static, device="openvino", bulk=True)
    ours, theirs = encoder.encode(texts), Encoder(minilm_bundle).encode(texts)
    assert (ours * theirs).sum(axis=1).mean() >= 0.998
    alone = np.concatenate([encoder.encode([text]) for text in texts[:20]])
    assert np.abs(alone - ours[:20]).max() <= 1e-5


@pytest.mark.slow
def test_int8_loses_no_more_than_a_thousandth_of_any_metric(
    minilm_bundle: Path, minilm_int8: Bundle, minilm_static: Bundle, quora: Path
) -> None:
    records = read_queries_and_index(quora / "queries.jsonl", quora / "index.jsonl")
    wanted = evaluate(Encoder(minilm_bundle), *records).metrics
    for bundle in (minilm_int8, minilm_static):
        found = evaluate(Encoder(bundle), *records).metrics
        assert {
            name: found[name] - wanted[name] for name in wanted if found[name] < wanted[name] - 0.001
        } == {}


def test_int8_takes_less_than_a_third_of_the_space_and_says_how_it_was_made(
    minilm_bundle: Path, minilm_int8: Bundle, minilm_static: Bundle
) -> None:
    for bundle, mode in ((minilm_int8, "dynamic"), (minilm_static, "static")):
        assert bundle.graph.stat().st_size < Bundle.open(minilm_bundle).graph.stat().st_size / 3
        manifest = bundle.manifest
        assert (manifest.precision, manifest.target) == ("int8", choose_target("int8", "auto"))
        assert manifest.quantization is not None
        assert manifest.quantization.mode == mode
        assert manifest.quantization.int8_embeddings
        assert manifest.quantization.smoothed > 0


def test_static_int8_does_not_depend_on_the_batch_and_dynamic_says_by_how_much(
    minilm_bundle: Path, minilm_int8: Bundle, minilm_static: Bundle
) -> None:
    said = minilm_int8.manifest.parity.batch_dependence
    assert said is not None
    assert 1e-5 < said < 0.1
    for independent in (minilm_static.manifest, Bundle.open(minilm_bundle).manifest):
        assert independent.parity.batch_dependence is not None
        assert independent.parity.batch_dependence <= 1e-5


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=80), min_size=1, max_size=12))
def test_the_neighbours_of_a_text_never_change_its_vector(minilm_static: Bundle, texts: list[str]) -> None:
    encoder = Encoder(minilm_static)
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(encoder.encode([text])[0] - vector).max() <= 1e-5


def test_the_same_export_has_the_same_fingerprint(tiny_model: Path, tmp_path: Path) -> None:
    first, second = (
        exporter.export(tiny_model, tmp_path / name, precision="int8", allow_loss=LOOSE) for name in "ab"
    )
    assert first.manifest.fingerprint == second.manifest.fingerprint


@pytest.mark.parametrize("target", ["avx2", "avx512_vnni", "arm64"])
def test_int8_is_made_for_the_processor_that_is_asked_for(
    target: str, tiny_model: Path, tmp_path: Path
) -> None:
    bundle = exporter.export(
        tiny_model,
        tmp_path / "bundle",
        precision="int8",
        target=target,  # type: ignore[arg-type]
        allow_loss=LOOSE,
    )
    assert bundle.manifest.target == target
    assert bundle.manifest.quantization is not None
    assert bundle.manifest.quantization.weight_type == ("uint8" if target == "avx2" else "int8")
    kinds = {
        tensor.data_type for tensor in onnx.load(bundle.graph).graph.initializer if len(tensor.dims) == 2
    }
    assert (onnx.TensorProto.UINT8 if target == "avx2" else onnx.TensorProto.INT8) in kinds


def test_fp16_gives_float32_vectors_near_torchs_at_half_the_size(
    tiny_model: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = exporter.export(tiny_model, tmp_path / "bundle", precision="fp16")
    assert (bundle.manifest.precision, bundle.manifest.target) == ("fp16", "cuda")
    assert bundle.manifest.parity.min_cosine >= 0.999
    vectors = Encoder(bundle).encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    assert (vectors * Encoder(tiny_bundle).encode(TEXTS)).sum(axis=1).min() >= 0.999
    tensors = onnx.load(bundle.graph).graph.initializer
    assert {tensor.data_type for tensor in tensors if len(tensor.dims) == 2} == {onnx.TensorProto.FLOAT16}


def flags(path: Path, text: str) -> Path:
    path.write_text(f"processor\t: 0\nflags\t\t: {text}\n")
    return path


def test_bf16_is_for_a_gpu_or_a_processor_that_has_it_and_openvino(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, amx = flags(tmp_path / "plain", "avx2 avx512f"), flags(tmp_path / "amx", "avx512f amx_bf16")
    devices = ["cpu", "openvino"]
    monkeypatch.setattr("exporter.processor_target.available_devices", lambda: devices)
    assert choose_target("bf16", "auto", amx) == choose_target("bf16", "avx512_bf16", amx) == BF16_PROCESSOR
    with pytest.raises(CognateError, match="bf16 wants a GPU, or a processor with AVX512-BF16 or AMX, and"):
        choose_target("bf16", "auto", plain)
    with pytest.raises(CognateError, match="bf16 for a GPU is measured on one, and onnxruntime has none"):
        choose_target("bf16", "cuda", amx)
    devices.append("cuda")
    assert choose_target("bf16", "auto", amx) == choose_target("bf16", "cuda", plain) == "cuda"
    assert choose_target("bf16", "avx512_bf16", amx) == BF16_PROCESSOR
    devices[:] = ["cpu"]
    with pytest.raises(CognateError, match=r"OpenVINO, which is not installed; install cognate\[openvino\]"):
        choose_target("bf16", "auto", amx)


has_bf16 = pytest.mark.skipif(
    not BF16_FLAGS.intersection(Path("/proc/cpuinfo").read_text().split()),
    reason="no AVX512-BF16 or AMX here",
)


@has_bf16
@has_openvino
def test_bf16_by_openvino_is_near_torch_at_half_the_size(minilm_bundle: Path, tmp_path: Path) -> None:
    bundle = exporter.export("minilm", tmp_path / "bundle", precision="bf16", target="avx512_bf16")
    manifest, whole = bundle.manifest, Bundle.open(minilm_bundle)
    assert (manifest.precision, manifest.target) == ("bf16", BF16_PROCESSOR)
    assert (manifest.parity.device, manifest.quantization) == ("openvino", None)
    assert manifest.parity.min_cosine >= 0.9999
    assert manifest.fingerprint != whole.manifest.fingerprint
    assert bundle.graph.stat().st_size < 0.51 * whole.graph.stat().st_size
    encoder = Encoder(bundle)
    assert encoder.device == "openvino"
    theirs = Encoder(whole).encode(TEXTS)
    assert (encoder.encode(TEXTS) * theirs).sum(axis=1).min() >= 0.9999
    # And it is not float32 with the same weights.
    in_float32 = Encoder(bundle, device="cpu").encode(TEXTS)
    assert np.abs(encoder.encode(TEXTS) - in_float32).max() > 1e-4


def test_bfloat16_matrices_are_widened_and_run_anywhere(tiny_bundle: Path, tmp_path: Path) -> None:
    original = onnx.load(Bundle.open(tiny_bundle).graph)
    graph = half_precision.bf16_matrices(original)
    onnx.checker.check_model(graph)
    kinds = onnx.TensorProto
    matrices = {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    assert matrices == {kinds.BFLOAT16}
    assert {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 1} == {
        tensor.data_type for tensor in original.graph.initializer if len(tensor.dims) == 1
    }
    vectors = Encoder(tiny_bundle, device="cpu").encode(TEXTS)
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    onnx.save(graph, tmp_path / "bundle/onnx/model.onnx")
    changed = Bundle(tmp_path / "bundle", Bundle.open(tiny_bundle).manifest)
    narrow = Encoder(changed, device="cpu").encode(TEXTS)
    assert (narrow * vectors).sum(axis=1).min() >= 0.999
    assert not np.array_equal(narrow, vectors)


def test_a_bf16_graph_has_bfloat16_weights_and_float32_vectors(tiny_bundle: Path) -> None:
    graph = half_precision.to_bf16(onnx.load(Bundle.open(tiny_bundle).graph))
    onnx.checker.check_model(graph)
    kinds = onnx.TensorProto
    assert kinds.FLOAT16 not in {tensor.data_type for tensor in graph.graph.initializer}
    matrices = {tensor.data_type for tensor in graph.graph.initializer if len(tensor.dims) == 2}
    assert matrices == {kinds.BFLOAT16}
    assert {value.type.tensor_type.elem_type for value in graph.graph.output} == {kinds.FLOAT}


def test_what_loses_too_much_is_published_only_where_it_is_accepted_by_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS["int8"], "min_cosine", 0.9999999)
    monkeypatch.setitem(LIMITS["int8"], "mean_cosine", 0.9999999)
    monkeypatch.setitem(LIMITS["int8"], "top_10_overlap", 0)
    for accepted, left in (((), "min_cosine --allow-loss mean_cosine"), (("min_cosine",), "mean_cosine")):
        with pytest.raises(ModelError, match=f"not exported: .*--allow-loss {left}$"):
            exporter.export(tiny_model, tmp_path / "bundle", precision="int8", allow_loss=accepted)
        assert not (tmp_path / "bundle").exists()
    bundle = exporter.export(tiny_model, tmp_path / "bundle", precision="int8", allow_loss=LOOSE)
    assert bundle.manifest.parity.accepted == ["mean_cosine", "min_cosine"]


def test_the_nine_metrics_are_compared_where_queries_and_index_are_given(
    tiny_model: Path, tmp_path: Path
) -> None:
    bundle = exporter.export(
        tiny_model, tmp_path / "bundle", queries=SAMPLE / "queries.jsonl", index=SAMPLE / "index.jsonl"
    )
    differences = bundle.manifest.parity.metric_differences
    assert differences is not None
    assert len(differences) == 9
    assert max(map(abs, differences.values())) < 0.001


def test_a_metric_that_falls_is_a_loss() -> None:
    vectors = np.eye(12, dtype=np.float32)
    parity = measure_parity(vectors, vectors)
    assert parity.top_10_overlap == 1
    assert losses(parity, "fp32") == {}
    fallen = parity.model_copy(update={"metric_differences": {"hit_at_k": -0.01, "r_precision": -0.0005}})
    assert losses(fallen, "int8") == {"hit_at_k": "hit_at_k loses 0.0100, more than 0.001"}
    assert set(figures_of(fallen)) == {*LOOSE, "hit_at_k", "r_precision"}
    assert "min_cosine" in losses(parity.model_copy(update={"min_cosine": float("nan")}), "int8")


def test_the_overlap_counts_the_nearest_texts_that_stay() -> None:
    random = np.random.default_rng(0)
    theirs = random.normal(size=(40, 8)).astype(np.float32)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    others = random.permutation(theirs)
    overlap = measure_parity(theirs, others).top_10_overlap
    assert overlap is not None
    assert overlap < 0.5


def test_the_processor_is_read_from_its_flags(tmp_path: Path) -> None:
    for has, target in (
        ("fpu avx avx2 fma", "avx2"),
        ("fpu avx2 avx512f avx512_vnni", "avx512_vnni"),
        ("fpu avx2 avx_vnni", "avx512_vnni"),
        ("fpu avx2 amx_int8", "avx512_vnni"),
    ):
        cpuinfo = flags(tmp_path / "cpuinfo", has)
        assert this_processor("x86_64", cpuinfo) == target
        assert this_processor("aarch64", cpuinfo) == "arm64"
    assert this_processor("AMD64", tmp_path / "none") == "avx2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int4"}, "no precision 'int4'; choose one of fp32, fp16, bf16, int8"),
        ({"precision": "int8", "target": "z80"}, "no target 'z80'"),
        ({"precision": "int8", "target": "cuda"}, "use --precision fp16"),
        ({"precision": "fp16", "target": "avx2"}, "fp16 is for GPUs"),
        ({"precision": "bf16", "target": "arm64"}, "bf16 is for cuda and avx512_bf16, not arm64"),
        ({"precision": "int8", "target": "avx512_bf16"}, "not avx512_bf16; .*bf16 for avx512_bf16"),
        ({"target": "avx2"}, "leave --target out"),
        ({"calibrate": SAMPLE / "index.jsonl"}, "leave --calibrate out"),
        ({"queries": SAMPLE / "index.jsonl"}, "both --queries and --index"),
        ({"allow_loss": ["everything"]}, "no loss is called 'everything'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(
    arguments: dict[str, object], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(CognateError, match=message):
        exporter.export(tiny_model, tmp_path / "bundle", **arguments)  # type: ignore[arg-type]


def test_an_empty_calibration_file_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(CognateError, match="empty.jsonl"):
        exporter.export(tiny_model, tmp_path / "bundle", precision="int8", calibrate=tmp_path / "empty.jsonl")


def test_an_old_manifest_is_still_read(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    for name in ("top_10_overlap", "batch_dependence", "metric_differences", "device", "accepted"):
        del manifest["parity"][name]
    del manifest["target"], manifest["quantization"]
    assert BundleManifest.model_validate(manifest).target == "any"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda graph: graph.write_bytes(graph.read_bytes()[:5000]),
            "cannot be run by onnxruntime: it is truncated or damaged",
        ),
        (
            lambda graph: newer(graph),
            "its ONNX version is newer than onnxruntime .* reads; update onnxruntime",
        ),
        (lambda graph: outside(graph), "its weights, weights, are missing"),
    ],
    ids=["truncated", "newer opset", "weights missing"],
)
def test_a_graph_that_cannot_be_run_is_one_clear_line(
    damage: Callable[[Path], object], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    damage(bundle.graph)
    with pytest.raises(ArtifactError, match="model.onnx"):
        Bundle.open(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match=message) as raised:
        Encoder(bundle)
    assert "\n" not in str(raised.value)


def newer(graph: Path) -> None:
    model = onnx.load(graph)
    for each in model.opset_import:
        each.version = 999
    graph.write_bytes(model.SerializeToString())


def outside(graph: Path) -> None:
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights", size_threshold=0)
    (graph.parent / "weights").unlink()
