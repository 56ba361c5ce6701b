"""What can be exported: poolings and encoder families, each against sentence-transformers' own vectors."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import exporter
from cognate.encoder import Encoder
from cognate.errors import ModelError

TEXTS = ["how do i reset the password", "door", "", "what is the printer " * 40, "🙂 怎样", "Learn!"]
CORPUS = ["how do i reset the password of the printer", "what is a door", "learn to open it", "Learn!"] * 8
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
LENGTH = 64


def word_pieces(kind: type[transformers.PreTrainedTokenizerFast]) -> transformers.PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if kind is transformers.MPNetTokenizerFast:
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(CORPUS, vocab_size=200, special_tokens=special)
    with tempfile.TemporaryDirectory() as folder:
        (vocabulary,) = trained.save_model(folder)
        return kind(vocab_file=vocabulary)


def byte_pairs() -> transformers.PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _fast(tokenizer)


def unigrams() -> transformers.PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _fast(tokenizer)


def _fast(tokenizer: tokenizers.Tokenizer) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _roberta(tokens: int, kind: type, config: type) -> torch.nn.Module:
    # RoBERTa's positions begin after the padding's id.
    settings = config(**SIZE, vocab_size=tokens, max_position_embeddings=LENGTH + 2, pad_token_id=1)
    return kind(settings)


FAMILIES: dict[
    str, tuple[Callable[[], transformers.PreTrainedTokenizerFast], Callable[[int], torch.nn.Module]]
] = {
    "bert": (
        lambda: word_pieces(transformers.BertTokenizerFast),
        lambda tokens: transformers.BertModel(
            transformers.BertConfig(**SIZE, vocab_size=tokens, max_position_embeddings=LENGTH)
        ),
    ),
    "distilbert": (
        lambda: word_pieces(transformers.DistilBertTokenizerFast),
        lambda tokens: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                dim=32,
                n_layers=2,
                n_heads=2,
                hidden_dim=64,
                vocab_size=tokens,
                max_position_embeddings=LENGTH,
            )
        ),
    ),
    "mpnet": (
        lambda: word_pieces(transformers.MPNetTokenizerFast),
        lambda tokens: _roberta(tokens, transformers.MPNetModel, transformers.MPNetConfig),
    ),
    "roberta": (
        byte_pairs,
        lambda tokens: _roberta(tokens, transformers.RobertaModel, transformers.RobertaConfig),
    ),
    "xlm-roberta": (
        unigrams,
        lambda tokens: _roberta(tokens, transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
    ),
    "modernbert": (
        byte_pairs,
        lambda tokens: transformers.ModernBertModel(
            transformers.ModernBertConfig(
                **SIZE,
                vocab_size=tokens,
                max_position_embeddings=LENGTH,
                pad_token_id=1,
                bos_token_id=0,
                eos_token_id=2,
                cls_token_id=0,
                sep_token_id=2,
                attn_implementation="eager",
                reference_compile=False,
            )
        ),
    ),
}


def make(family: str, folder: Path) -> Path:
    """A plain transformers folder of a family, with random weights."""
    torch.manual_seed(1)
    make_tokenizer, make_model = FAMILIES[family]
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = LENGTH
    model = make_model(len(tokenizer))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_vectors_of_sentence_transformers(family: str, tmp_path: Path) -> None:
    transformer = Transformer(str(make(family, tmp_path / "plain")), max_seq_length=LENGTH)
    model = SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    bundle = exporter.export(tmp_path / "model", tmp_path / "bundle")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    ours = Encoder(bundle).encode(TEXTS)
    assert (theirs * ours).sum(axis=1).min() >= 0.9999
    # Vectors that are all alike would be equal whatever the graph did.
    assert (theirs @ theirs.T).min() < 0.99


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
)
def test_every_pooling_with_dense_layers_and_prompts(pooling: str, tiny_model: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(
        modules=[Transformer(str(tiny_model)), Pooling(32, pooling_mode=pooling), Dense(32, 8)],  # type: ignore[arg-type]
        device="cpu",
        prompts={"query": "find: ", "document": "text: "},
    )
    model.save(str(tmp_path / "model"), create_model_card=False)
    bundle = exporter.export(tmp_path / "model", tmp_path / "bundle")
    assert (bundle.manifest.dimension, bundle.manifest.pooling) == (8, pooling)
    for input_type, prompt in (("query", "find: "), ("passage", "text: ")):
        theirs = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        ours = Encoder(bundle).encode(TEXTS, input_type)  # type: ignore[arg-type]
        assert (theirs * ours).sum(axis=1).min() >= 0.9999


def test_a_model_that_does_not_say_how_it_pools_needs_to_be_told(tmp_path: Path) -> None:
    plain = make("bert", tmp_path / "plain")
    with pytest.raises(ModelError, match="does not say how its token vectors are pooled; give --pooling"):
        exporter.export(plain, tmp_path / "bundle")
    with pytest.raises(ModelError, match="no pooling 'middle'"):
        exporter.export(plain, tmp_path / "bundle", pooling="middle")
    bundle = exporter.export(plain, tmp_path / "bundle", pooling="cls")
    assert bundle.manifest.pooling == "cls"
    model = SentenceTransformer(modules=[Transformer(str(plain)), Pooling(32, "cls")], device="cpu")
    theirs = model.encode(TEXTS, normalize_embeddings=True)
    assert (theirs * Encoder(bundle).encode(TEXTS)).sum(axis=1).min() >= 0.9999


def test_a_pooling_is_not_given_to_a_model_that_has_one(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave --pooling out"):
        exporter.export(tiny_model, tmp_path / "bundle", pooling="cls")


def test_a_model_that_needs_code_of_its_own_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model/config.json"
    settings = json.loads(config.read_text()) | {
        "model_type": "nomic_bert",
        "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    }
    config.write_text(json.dumps(settings))
    (tmp_path / "model/code.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        exporter.export(tmp_path / "model", tmp_path / "bundle")


def test_a_tokenizer_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    transformer = Transformer(str(tiny_model))
    transformer.tokenizer.add_tokens([f"word{number}" for number in range(50)])
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(tmp_path / "model"), create_model_card=False)
    with pytest.raises(ModelError, match="the tokenizer belongs to another model"):
        exporter.export(tmp_path / "model", tmp_path / "bundle")
