"""Tiny models of the encoder families, with random weights and tokenizers of their kinds."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

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
