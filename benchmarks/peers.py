"""A text encoder in a process of its own, told what to do on standard input.

Run by ``encode.py`` as ``python peers.py NAME JSON``, in the environment that the peer needs, so nothing but
that peer may be imported here. Answers are one JSON document a line on standard output.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 32
"""Texts of a batch, for every peer: what sentence-transformers and Infinity take unasked."""

Encode = Callable[[list[str]], Any]


def cognate(options: dict[str, Any]) -> Encode:
    """This project, as a server and a Python program use it."""
    from cognate import Encoder

    return Encoder(options["bundle"], device=options["device"]).encode


def cognate_bulk(options: dict[str, Any]) -> Encode:
    """This project, as the indexer and ``cognate evaluate`` use it."""
    from cognate import Encoder

    return Encoder(options["bundle"], device=options["device"], bulk=True).encode


def cognate_fp16(options: dict[str, Any]) -> Encode:
    """The fp16 bundle, as a server uses it."""
    return cognate(options | {"bundle": options["fp16_bundle"]})


def cognate_bf16(options: dict[str, Any]) -> Encode:
    """The bf16 bundle, as a server uses it: on a processor by OpenVINO."""
    return cognate(_bf16(options))


def cognate_bf16_bulk(options: dict[str, Any]) -> Encode:
    """The bf16 bundle, as the indexer uses it."""
    return cognate_bulk(_bf16(options))


def _bf16(options: dict[str, Any]) -> dict[str, Any]:
    device = "openvino" if options["device"] == "cpu" else options["device"]
    return options | {"bundle": options["bf16_bundle"], "device": device}


def cognate_int8(options: dict[str, Any]) -> Encode:
    """The int8 bundle, as a server uses it."""
    return cognate(options | {"bundle": options["int8_bundle"]})


def cognate_int8_bulk(options: dict[str, Any]) -> Encode:
    """The int8 bundle, as the indexer uses it."""
    return cognate_bulk(options | {"bundle": options["int8_bundle"]})


def cognate_int8_openvino(options: dict[str, Any]) -> Encode:
    """The int8 bundle with calibration, as the indexer uses it where OpenVINO is asked for."""
    return cognate_bulk(options | {"bundle": options["static_int8_bundle"], "device": "openvino"})


def sentence_transformers_torch(options: dict[str, Any], dtype: str = "float32") -> Encode:
    """SentenceTransformer as it comes."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(options["model"], device=options["device"], model_kwargs={"dtype": dtype})
    return lambda texts: model.encode(texts, batch_size=BATCH)


def sentence_transformers_fp16(options: dict[str, Any]) -> Encode:
    """SentenceTransformer with half the bits."""
    return sentence_transformers_torch(options, "float16")


def sentence_transformers_bf16(options: dict[str, Any]) -> Encode:
    """SentenceTransformer in bfloat16."""
    return sentence_transformers_torch(options, "bfloat16")


def sentence_transformers_graphs(options: dict[str, Any], dtype: str = "float16") -> Encode:
    """SentenceTransformer compiled; on CUDA each shape is a graph, so that texts are padded to few."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(options["model"], device=options["device"], model_kwargs={"dtype": dtype})
    model[0].auto_model = torch.compile(model[0].auto_model, mode="reduce-overhead", dynamic=False)
    tokenize = model.tokenize

    def padded(texts: list[str], **settings: Any) -> Any:
        # As many texts and a multiple of 64 tokens, with nothing where there are fewer.
        features = tokenize([*texts, *[""] * (BATCH - len(texts))], **settings)
        tokens = features["input_ids"].shape[1]
        more = min(options["max_length"], -(-tokens // 64) * 64) - tokens
        return {name: torch.nn.functional.pad(values, (0, more)) for name, values in features.items()}

    def encode(texts: list[str]) -> Any:
        import numpy as np

        order = sorted(range(len(texts)), key=lambda position: len(texts[position]), reverse=True)
        vectors = np.empty((len(texts), options["dimension"]), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                features = padded([texts[position] for position in batch])
                features = {name: values.to(model.device) for name, values in features.items()}
                found = model(features)["sentence_embedding"]
                vectors[batch] = found[: len(batch)].float().cpu().numpy()
        return vectors

    return encode


def sentence_transformers_onnx(options: dict[str, Any]) -> Encode:
    """SentenceTransformer with the same graph as ours."""
    from sentence_transformers import SentenceTransformer

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[options["device"]]
    model = SentenceTransformer(
        options["bundle"], backend="onnx", device=options["device"], model_kwargs={"provider": provider}
    )
    return lambda texts: model.encode(texts, batch_size=BATCH)


def optimum_by_hand(options: dict[str, Any]) -> Encode:
    """What one writes with ORTModelForFeatureExtraction: sorted by length, batched, pooled in numpy."""
    import numpy as np
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[options["device"]]
    model = ORTModelForFeatureExtraction.from_pretrained(
        options["bundle"], subfolder="onnx", file_name="model.onnx", provider=provider
    )
    tokenizer = AutoTokenizer.from_pretrained(options["bundle"])  # type: ignore[no-untyped-call]

    def encode(texts: list[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]), reverse=True)
        vectors = np.empty((len(texts), options["dimension"]), np.float32)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs = tokenizer(
                [texts[position] for position in batch],
                padding=True,
                truncation=True,
                max_length=options["max_length"],
                return_tensors="np",
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].astype(np.float32)
            means = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = means / np.linalg.norm(means, axis=1, keepdims=True)
        return vectors

    return encode


def fastembed(options: dict[str, Any]) -> Encode:
    """FastEmbed with the same graph, as a custom model."""
    import numpy as np
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="cognate/benchmark",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="cognate/benchmark"),
        dim=options["dimension"],
        model_file="onnx/model.onnx",
    )
    model: Any = TextEmbedding(
        "cognate/benchmark",
        specific_model_path=options["bundle"],
        threads=options["threads"],
        cuda=options["device"] == "cuda",
    )
    # It takes the length of the folder's tokenizer_config.json, which may be another than the model's.
    model.model.tokenizer.enable_truncation(options["max_length"])
    return lambda texts: np.array(list(model.embed(texts, batch_size=BATCH)))


def infinity(options: dict[str, Any]) -> Encode:
    """Infinity's engine, without its HTTP server."""
    import numpy as np
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # type: ignore[import-not-found]

    loop = asyncio.new_event_loop()
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=options["model"],
            engine="torch",
            device=options["device"],
            batch_size=BATCH,
            dtype="float32",
            bettertransformer=False,
            compile=False,
            model_warmup=False,
            lengths_via_tokenize=False,
        )
    )
    loop.run_until_complete(engine.astart())

    def encode(texts: list[str]) -> Any:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=texts))
        return np.array(vectors)

    return encode


def sgemm(options: dict[str, Any]) -> Callable[[], float]:
    """The most GFLOP/s that numpy, torch or onnxruntime reach in multiplying float32 matrices."""
    import numpy as np
    import onnx
    import onnxruntime
    import torch

    torch.set_num_threads(options["threads"])
    left, right = np.random.default_rng(0).random((2, 1024, 1024), np.float32)
    torch_left, torch_right = torch.from_numpy(left), torch.from_numpy(right)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["left", "right"], ["product"])],
        "sgemm",
        [onnx.helper.make_tensor_value_info("left", onnx.TensorProto.FLOAT, left.shape)],
        [onnx.helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, left.shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    ).SerializeToString()
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options["threads"]
    session = onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])

    def measure() -> float:
        best = 0.0
        for multiply in (
            lambda: left @ right,
            lambda: torch_left @ torch_right,
            lambda: session.run(None, {"left": left}),
        ):
            multiply()
            for _ in range(8):
                started = time.perf_counter()
                for _ in range(8):
                    multiply()
                best = max(best, 8 * 2 * 1024**3 / (time.perf_counter() - started) / 1e9)
        return best

    return measure


def peak_memory() -> int:
    """Bytes of memory that this process has had at most."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which begins with what the process had that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Load the peer, encode one text, and do as told until the input ends."""
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, options = sys.argv[1], json.loads(sys.argv[2])
    if name == "sgemm":
        measure = sgemm(options)
    else:
        encode = globals()[name](options)
        encode(["the first text"])
    print(json.dumps({"ready": time.time()}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {"peak_memory": peak_memory()}
        if name == "sgemm":
            answer["gflops"] = measure()
        elif "texts" in order:
            texts = json.loads(Path(order["texts"]).read_text())
            started = time.perf_counter()
            vectors = encode(texts)
            answer["seconds"] = time.perf_counter() - started
            import numpy as np

            np.save(order["vectors"], np.asarray(vectors, np.float32))
        elif "one_by_one" in order:
            answer["seconds"] = []
            for text in json.loads(Path(order["one_by_one"]).read_text()):
                started = time.perf_counter()
                encode([text])
                answer["seconds"].append(time.perf_counter() - started)
        print(json.dumps(answer), file=answers, flush=True)
    # Without waiting for the threads of those that never end theirs.
    os._exit(0)


if __name__ == "__main__":
    main()
