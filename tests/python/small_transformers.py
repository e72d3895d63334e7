"""Small models and tokenizers of transformers with random weights, made from configs."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer as Words
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

import fastseq as fs

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
FAR = {"initializer_range": 0.3}  # outputs differ from text to text
SURE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SERIES = {
    "num_input_channels": 2, "context_length": 24, "patch_length": 4, "patch_stride": 4,
    "d_model": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "ffn_dim": 32,
    "loss": "mse", "attention_dropout": 0.0, "ff_dropout": 0.0, "head_dropout": 0.0,
    "positional_dropout": 0.0, "path_dropout": 0.0,
}  # fmt: skip
TEXTS = ["a good film", "a bad film", "what a good and long evening", "bad"]


def config(**more):
    return BertConfig(
        **{**SIZES, **SURE, **FAR, "max_position_embeddings": 20, "num_labels": 3, **more}
    )


def made(kind=AutoModelForSequenceClassification, **more):
    torch.manual_seed(0)
    return kind.from_config(config(**more))


def texts(count=13, least=2, most=9, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 39, n) for n in rng.integers(least, most, count)]


def padded(ids, pad=0):
    """Return ids and mask as transformers gets them."""
    lengths = np.array([len(one) for one in ids])
    whole = np.full((len(ids), lengths.max()), pad)
    for row, one in zip(whole, ids, strict=True):
        row[: len(one)] = one
    mask = np.arange(lengths.max()) < lengths[:, None]
    return torch.from_numpy(whole), torch.from_numpy(mask.astype(int))


def direct(model, ids, pad=0):
    x, mask = padded(ids, pad)
    with torch.no_grad():
        return model.eval()(input_ids=x, attention_mask=mask).logits.numpy()


SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def words():
    known = dict.fromkeys([*SPECIAL.values(), *" ".join(TEXTS).split()])
    found = Words(models.WordLevel({word: n for n, word in enumerate(known)}, "[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=found, **SPECIAL)


def classifier(module, **more):
    options = {"epochs": 2, "batchsize": 5, "device": "cpu", "random_state": 0, **more}
    return fs.SequenceClassifier(module, **options)


def plain_sgd(params, lr, weight_decay):
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)
