"""``cognate models``: those to start from, and what any one is."""

import json
from collections.abc import Callable
from pathlib import Path

import trainer


def test_known_models_are_listed_the_one_without_a_network_first(cognate: Callable) -> None:
    listed = json.loads(cognate("models", "--json").out)
    assert listed[0]["name"] == "minilm"
    assert len({model["name"] for model in listed}) == len(listed) > 10
    assert all(model["licence"] in ("Apache-2.0", "MIT") for model in listed)
    shown = cognate("models")
    assert shown.code == 0
    assert "bert-base-uncased" in shown.out
    assert json.loads(cognate("models", "bert-base-uncased", "--json").out)["dimension"] == 768


def test_what_is_said_of_minilm_is_so() -> None:
    from cognate.models import KNOWN
    from trainer.description import describe

    told = describe("minilm")
    assert told["dimension"] == KNOWN[0].dimension
    assert told["max_length"] == KNOWN[0].max_length
    assert round(float(str(told["parameters"])), 1) == KNOWN[0].parameters


def test_a_folder_a_checkpoint_and_a_bundle_are_described(
    tiny_model: Path, tiny_bundle: Path, tmp_path: Path, cognate: Callable
) -> None:
    (tmp_path / "records.jsonl").write_text(
        "".join(json.dumps({"text": f"{a} {b}", "label": a}) + "\n" for a in "abcd" for b in "xy")
    )
    trainer.fit(
        str(tiny_model),
        tmp_path / "records.jsonl",
        out=tmp_path / "checkpoint",
        epochs=1,
        batch_size=4,
        records_per_label=2,
        output_dim=8,
    )
    told = json.loads(cognate("models", tiny_model, "--json").out)
    assert (told["kind"], told["dimension"], told["max_length"], told["pooling"]) == ("model", 32, 64, "mean")
    told = json.loads(cognate("models", tmp_path / "checkpoint", "--json").out)
    assert (told["kind"], told["dimension"], told["loss"]) == ("checkpoint", 8, "TripletMarginLoss")
    told = json.loads(cognate("models", tiny_bundle, "--json").out)
    assert (told["kind"], told["dimension"], told["precision"]) == ("bundle", 32, "fp32")


def test_a_model_that_is_not_there_is_one_sentence(cognate: Callable, tmp_path: Path) -> None:
    assert "no model named 'no/such'" in cognate("models", "no/such").check_one_line_error()
    assert "is not a model folder" in cognate("models", tmp_path).check_one_line_error()
