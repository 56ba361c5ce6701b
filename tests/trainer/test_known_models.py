"""The sizes of ``cognate models`` are those that the published configurations give."""

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    MPNetConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from cognate.models import KNOWN

SIZES = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
XLMR = {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1}
SMALL = BertConfig(vocab_size=30522, num_hidden_layers=12, **SIZES)
SMALL_MULTILINGUAL = BertConfig(vocab_size=250037, num_hidden_layers=12, **SIZES)
TINY = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}

PUBLISHED: dict[str, PretrainedConfig] = {
    "minilm": BertConfig(num_hidden_layers=6, **SIZES),
    "google/bert_uncased_L-2_H-128_A-2": BertConfig(**TINY),
    "sentence-transformers/all-MiniLM-L12-v2": SMALL,
    "sentence-transformers/all-mpnet-base-v2": MPNetConfig(vocab_size=30527),
    "BAAI/bge-small-en-v1.5": SMALL,
    "BAAI/bge-base-en-v1.5": BertConfig(),
    "BAAI/bge-large-en-v1.5": BertConfig(**LARGE),
    "thenlper/gte-small": SMALL,
    "thenlper/gte-base": BertConfig(),
    "intfloat/e5-small-v2": SMALL,
    "intfloat/e5-base-v2": BertConfig(),
    "intfloat/multilingual-e5-small": SMALL_MULTILINGUAL,
    "intfloat/multilingual-e5-base": XLMRobertaConfig(**XLMR),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": SMALL_MULTILINGUAL,
    "BAAI/bge-m3": XLMRobertaConfig(**{**XLMR, "max_position_embeddings": 8194}, **LARGE),
    "distilbert-base-uncased": DistilBertConfig(),
    "bert-base-uncased": BertConfig(),
    "bert-base-multilingual-cased": BertConfig(vocab_size=119547),
    "xlm-roberta-base": XLMRobertaConfig(**XLMR),
}


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_known_model_has_the_size_that_its_configuration_gives(known) -> None:  # type: ignore[no-untyped-def]
    config = PUBLISHED[known.name]
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    millions = sum(weights.numel() for weights in model.parameters()) / 1e6
    assert millions == pytest.approx(known.parameters, abs=0.05 if known.parameters < 100 else 0.6)
    assert config.hidden_size == known.dimension
