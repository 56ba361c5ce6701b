"""Where the model runs."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest

from cognate import providers
from cognate.bundle import Bundle
from cognate.cli import app
from cognate.devices import Device, index_device
from cognate.encoder import Encoder
from cognate.errors import ArtifactError, CognateError
from cognate.providers import (
    BF16_PROCESSOR,
    PROVIDERS,
    available_devices,
    openvino_options,
    tensorrt_options,
)
from tests.openvino import has_openvino

built = onnxruntime.get_available_providers()
MISSING = [device for device in PROVIDERS if device not in available_devices()]
TEXTS = [" ".join(["door", "open"] * length) for length in range(40)]


def test_every_device_but_auto_is_in_the_table() -> None:
    assert {"auto", *PROVIDERS} == set(get_args(Device))


def test_the_cpu_is_always_there_and_what_is_there_is_of_the_table() -> None:
    assert "cpu" in available_devices()
    assert set(available_devices()) <= set(PROVIDERS)


@pytest.mark.parametrize("device", MISSING)
def test_a_device_that_is_not_there_is_refused_and_never_replaced(tiny_bundle: Path, device: Device) -> None:
    with pytest.raises(
        CognateError, match=rf"device {device} was asked for, .* has only .*cpu.* install .*cpu"
    ):
        Encoder(tiny_bundle, device=device)


def test_auto_goes_on_to_the_cpu_where_cuda_is_built_in_but_does_not_start(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if "CUDAExecutionProvider" in built:
        pytest.skip("this onnxruntime has CUDA")
    # As an onnxruntime-gpu without a driver: the provider is listed, and the session comes back without it.
    monkeypatch.setattr(providers, "available_devices", lambda: ["cpu", "cuda"])
    with caplog.at_level(logging.WARNING):
        assert Encoder(tiny_bundle).device == "cpu"
    assert "onnxruntime could not start it" in caplog.text
    with pytest.raises(CognateError, match="device cuda was asked for, but onnxruntime could not start it"):
        Encoder(tiny_bundle, device="cuda")


def test_a_library_of_cuda_that_does_not_load_is_named_and_auto_goes_on_to_the_cpu(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As where cuBLAS or the driver is missing: the system's loader refuses the file.
    shared = "libonnxruntime_providers_shared.so"
    if not (providers.ONNXRUNTIME_LIBRARIES / shared).is_file():
        pytest.skip("this onnxruntime has no such libraries")
    (tmp_path / shared).symlink_to(providers.ONNXRUNTIME_LIBRARIES / shared)
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(providers, "ONNXRUNTIME_LIBRARIES", tmp_path)
    monkeypatch.setattr(providers, "available_devices", lambda: ["cpu", "cuda"])
    why = (
        r"device cuda was asked for, .* could not start it \(.*libonnxruntime_providers_cuda.so: .+\); check"
    )
    with pytest.raises(CognateError, match=why):
        Encoder(tiny_bundle, device="cuda")
    with caplog.at_level(logging.WARNING):
        assert Encoder(tiny_bundle).device == "cpu"
    assert re.search(why + ".* --device auto goes on with cpu", caplog.text)


def test_vectors_may_stay_where_they_were_calculated(tiny_bundle: Path) -> None:
    encoder = Encoder(tiny_bundle)
    ids = [text.ids for text in encoder.tokenize(["open the door", "a", ""])]
    there = encoder.forward_on_device(ids)
    assert there.device_name() == encoder.device
    np.testing.assert_array_equal(there.numpy(), encoder.forward(ids))


def test_padding_to_a_multiple_of_tokens_changes_no_vector(tiny_bundle: Path) -> None:
    encoder, padding = Encoder(tiny_bundle), Encoder(tiny_bundle)
    padding._provider = PROVIDERS["cuda"]
    texts = [" ".join(["door"] * length) for length in (0, 1, 13, 14, 15, 40, 61, 62, 90)]
    ids = [text.ids for text in encoder.tokenize(texts)]
    np.testing.assert_allclose(padding.forward(ids[:3]), encoder.forward(ids[:3]), atol=1e-5)
    assert padding._feeds(ids[:3])["input_ids"].shape[1] == 16
    # Never past what the model has positions for.
    assert padding._feeds(ids)["input_ids"].shape[1] == 64
    # Where a shorter batch may be the quicker one, only what nearly fills the length is padded.
    padding._provider = PROVIDERS["openvino"]
    assert [padding.padded_length(tokens) for tokens in (0, 1, 9, 10, 16, 17, 26)] == [
        1,
        1,
        9,
        16,
        16,
        17,
        32,
    ]
    np.testing.assert_allclose(padding.forward(ids[:3]), encoder.forward(ids[:3]), atol=1e-5)


def test_tensorrt_has_one_engine_for_all_shapes_outside_the_bundle(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open(tiny_bundle)
    options = tensorrt_options(bundle, PROVIDERS["tensorrt"], ["input_ids", "attention_mask"])
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_max_shapes"] == "input_ids:1024x64,attention_mask:1024x64"
    assert options["trt_engine_cache_path"] == str(
        tmp_path / "cognate/tensorrt" / bundle.manifest.fingerprint
    )


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in built, reason="this onnxruntime has no CUDA")
def test_vectors_of_a_gpu_are_those_of_the_cpu(tiny_bundle: Path) -> None:
    gpu = Encoder(tiny_bundle, device="cuda")
    np.testing.assert_allclose(gpu.encode(TEXTS), Encoder(tiny_bundle, device="cpu").encode(TEXTS), atol=1e-5)
    assert gpu.forward_on_device([[2, 3]]).device_name() == "cuda"


@has_openvino
@pytest.mark.parametrize("bulk", [False, True])
def test_vectors_by_openvino_are_those_of_the_cpu_where_the_bundle_is_fp32(
    tiny_bundle: Path, bulk: bool
) -> None:
    encoder = Encoder(tiny_bundle, device="openvino", bulk=bulk, threads=2)
    assert (encoder.device, encoder.runs_at_once) == ("openvino", 2)
    # Long enough for several batches, which two threads run side by side.
    texts = TEXTS * 20
    theirs = Encoder(tiny_bundle, device="cpu").encode(texts)
    np.testing.assert_allclose(encoder.encode(texts), theirs, atol=1e-5)
    ids = [text.ids for text in encoder.tokenize(TEXTS[:3])]
    np.testing.assert_allclose(encoder.forward_on_device(ids).numpy(), theirs[:3], atol=1e-5)


def for_bf16(bundle: Path) -> Bundle:
    opened = Bundle.open(bundle)
    manifest = opened.manifest.model_copy(update={"precision": "bf16", "target": BF16_PROCESSOR})
    return Bundle(opened.folder, manifest)


@has_openvino
def test_auto_takes_openvino_for_a_bundle_made_for_it_and_for_no_other(tiny_bundle: Path) -> None:
    assert Encoder(for_bf16(tiny_bundle)).device == "openvino"
    assert Encoder(tiny_bundle).device != "openvino"


@has_openvino
def test_openvino_calculates_in_the_arithmetic_that_a_bundle_is_for(tiny_bundle: Path) -> None:
    plain = Bundle.open(tiny_bundle)
    int8 = Bundle(
        plain.folder, plain.manifest.model_copy(update={"precision": "int8", "target": "avx512_vnni"})
    )
    for bundle, arithmetic in ((for_bf16(tiny_bundle), "bf16"), (int8, "bf16"), (plain, "f32")):
        (settings,) = json.loads(openvino_options(bundle, 3)["load_config"]).values()
        assert settings["INFERENCE_PRECISION_HINT"] == arithmetic
        assert settings["INFERENCE_NUM_THREADS"] == settings["NUM_STREAMS"] == "3"


def test_a_bundle_made_for_openvino_runs_without_it_and_says_so(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(providers, "available_devices", lambda: ["cpu"])
    encoder = Encoder(for_bf16(tiny_bundle))
    assert encoder.device == "cpu"
    (warning,) = caplog.messages
    assert "is for OpenVINO, which is not installed, and is calculated in float32" in warning
    assert "install cognate[openvino]" in warning
    np.testing.assert_array_equal(encoder.encode(TEXTS), Encoder(tiny_bundle, device="cpu").encode(TEXTS))
    with pytest.raises(
        CognateError, match=r"has only cpu; install cognate\[openvino\], or use --device cpu$"
    ):
        Encoder(tiny_bundle, device="openvino")


@has_openvino
def test_a_plugin_that_cannot_be_loaded_is_one_line_and_auto_goes_on_without_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(
        providers,
        "_load_plugin",
        lambda _: onnxruntime.register_execution_provider_library("broken", str(tmp_path / "broken.so")),
    )
    with pytest.raises(
        CognateError, match="device openvino was asked for, but .* could not start it"
    ) as caught:
        Encoder(tiny_bundle, device="openvino")
    assert "\n" not in str(caught.value)
    assert Encoder(for_bf16(tiny_bundle)).device == "cpu"
    assert "--device auto goes on with cpu" in caplog.text


@has_openvino
def test_a_damaged_graph_is_one_line_by_openvino_too(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = tmp_path / "bundle/onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    bundle = Bundle(tmp_path / "bundle", Bundle.open(tiny_bundle).manifest)
    with pytest.raises(
        ArtifactError, match="model.onnx cannot be run by onnxruntime: it is truncated or damaged"
    ):
        Encoder(bundle, device="openvino")


@pytest.mark.parametrize("device", MISSING)
@pytest.mark.parametrize(
    "command",
    [
        "index build {records} --bundle {bundle} --out {out}",
        "index update {index} --bundle {bundle} --upsert {records}",
        "index verify {index} --bundle {bundle}",
        "evaluate {bundle} --queries {records} --index {records}",
        "serve --bundle {bundle} --port 0",
        "demo --out {out} --once",
    ],
)
def test_every_command_refuses_a_device_that_is_not_there(
    command: str, device: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": "a", "text": "open the door", "label": "x"}\n')
    words = command.format(
        records=records, bundle=tiny_bundle, out=tmp_path / "out", index=tmp_path / "index"
    )
    with pytest.raises(CognateError, match=rf"device {device} was asked for, .*; install .*--device cpu"):
        app([*words.split(), "--device", device], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_model_of_torch_is_on_none_of_onnxruntimes_devices(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": "a", "text": "open the door", "label": "x"}\n')
    words = ["evaluate", "minilm", "--queries", str(records), "--index", str(records), "--device", "openvino"]
    with pytest.raises(
        CognateError, match="device openvino was asked for, but minilm is no bundle and runs in"
    ):
        app(words, standalone_mode=False)


def test_indexes_follow_the_model_to_cuda_and_else_stay_on_the_cpu() -> None:
    assert {device: index_device(device) for device in get_args(Device)} == {
        "auto": "auto",
        "cuda": "cuda",
        "tensorrt": "cuda",
        **dict.fromkeys(("cpu", "openvino", "coreml", "directml"), "cpu"),
    }
