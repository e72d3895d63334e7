"""Models of transformers, trained by fastseq, do what transformers and a plain loop do."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer as Words
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PatchTSTConfig,
    PatchTSTForClassification,
    PatchTSTForPrediction,
    PatchTSTForPretraining,
    PatchTSTForRegression,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import fastseq as fs
from fastseq.huggingface import SeriesModel, TextBuilder, TextModel, Tokenizer, save_pretrained

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


class TestTraining:
    def test_the_classifier_does_what_a_plain_loop_does(self):
        ids, y = texts(), np.arange(13) % 3
        weight = np.linspace(0.5, 2, 13)
        model = classifier(
            TextModel(made()), epochs=1, shuffle=False, optimizer=plain_sgd, lr=0.1, schedule=None,
            clip_norm=None, class_weight={0: 1.0, 1: 3.0, 2: 0.5},
        ).fit(ids, y, sample_weight=weight)  # fmt: skip

        plain = made().train()
        before = {name: p.detach().clone() for name, p in plain.named_parameters()}
        sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
        order = np.argsort([-len(one) for one in ids], kind="stable")  # so the classifier sorts
        w = weight * np.array([1.0, 3.0, 0.5])[y]
        for part in np.split(order, [5, 10]):
            x, mask = padded([ids[i] for i in part])
            logits = plain(input_ids=x, attention_mask=mask).logits
            losses = cross_entropy(logits, torch.from_numpy(y[part]), reduction="none")
            ws = torch.from_numpy(w[part]).float()
            sgd.zero_grad()
            ((losses * ws).sum() / ws.sum()).backward()
            sgd.step()
        found = model.estimator_.model.model
        moved = 0.0
        for name, p in found.named_parameters():
            wanted = plain.get_parameter(name)
            torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-5, msg=name)
            moved = max(moved, float((wanted - before[name]).detach().abs().max()))
        assert moved > 1e-2
        np.testing.assert_allclose(
            model.estimator_.model(padded(ids)[0].T[..., None]).detach(),
            direct(found, ids), rtol=1e-5, atol=1e-5,
        )  # fmt: skip

    def test_the_estimator_does_what_a_plain_loop_does(self):
        """Token by token, with lengths; what is past the ends is no matter."""
        ids = texts(6)
        x, mask = padded(ids)
        junk = torch.where(mask.bool(), x, 39)
        y = torch.from_numpy(np.random.default_rng(1).integers(0, 3, x.shape))
        model = TextModel(made(AutoModelForTokenClassification))
        spec = {"epochs": 1, "batchsize": 6, "seqsize": 20}
        est = fs.Estimator(
            model, fs.seqloss(cross_entropy), lambda p: torch.optim.SGD(p, lr=0.1), spec,
            device="cpu", progress=False,
        )  # fmt: skip
        lengths = mask.sum(1)
        est.fit(junk.T[..., None], y.T, lengths=lengths)

        plain = made(AutoModelForTokenClassification).train()
        logits = plain(input_ids=x, attention_mask=mask).logits
        loss = cross_entropy(logits[mask.bool()], y[mask.bool()])
        loss.backward()
        assert abs(est.history_[-1]["loss"] - loss.item()) < 1e-6
        for p, wanted in zip(model.model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, wanted - 0.1 * wanted.grad, rtol=1e-5, atol=1e-5)
        found = est.predict(junk.T[..., None], lengths=lengths).swapaxes(0, 1)
        wanted = direct(model.model, ids)
        np.testing.assert_allclose(found[mask.bool()], wanted[mask.bool()], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        "small",
        [
            config(),
            config(pad_token_id=None),
            config(pad_token_id=39),
            DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=1, n_heads=2, **FAR),
            GPT2Config(vocab_size=40, n_positions=20, n_embd=16, n_layer=1, n_head=2, pad_token_id=39, **FAR),
            RobertaConfig(**SIZES, max_position_embeddings=12, pad_token_id=1, **FAR),
        ],
        ids=["bert", "no-pad", "pad-39", "distilbert", "gpt2", "roberta"],
    )  # fmt: skip
    def test_predictions_are_those_of_the_model_with_its_mask(self, small):
        pad = 7 if small.pad_token_id is None else small.pad_token_id
        ids, y = texts(), np.array(["x", "y", "z"])[np.arange(13) % 3]
        model = classifier(TextBuilder(small)).fit(ids, y)
        bare = model.estimator_.model.model
        wanted = torch.from_numpy(direct(bare, ids, pad)).softmax(1)
        assert wanted.std(0).min() > 0.01
        np.testing.assert_allclose(model.predict_proba(ids), wanted, rtol=1e-4, atol=1e-5)
        alone = np.concatenate([model.predict_proba([one]) for one in ids])
        np.testing.assert_allclose(alone, wanted, rtol=1e-4, atol=1e-5)
        x, mask = padded(ids, 21)  # what is past the ends is no matter
        with torch.no_grad():
            told = model.estimator_.model.eval()(x.T[..., None], lengths=mask.sum(1))
        np.testing.assert_allclose(told.softmax(1), wanted, rtol=1e-4, atol=1e-5)
        if small.pad_token_id is not None:  # an array that transformers has padded
            array = model.predict_proba(padded(ids, pad)[0][..., None].numpy())
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-5)

    def test_dropout_is_of_training_alone(self):
        ids, y = texts(), np.arange(13) % 3
        rates = {"hidden_dropout_prob": 0.5}
        model = classifier(TextModel(made(**rates))).fit(ids, y)
        np.testing.assert_array_equal(model.predict_proba(ids), model.predict_proba(ids))
        other = classifier(TextModel(made())).fit(ids, y)
        assert np.abs(model.predict_proba(ids) - other.predict_proba(ids)).max() > 1e-4

    def test_a_frozen_encoder_stays(self):
        frozen = made()
        frozen.base_model.requires_grad_(False)
        before = {name: p.clone() for name, p in frozen.state_dict().items()}
        model = classifier(TextModel(frozen), lr=0.1).fit(texts(), np.arange(13) % 3)
        for name, p in model.estimator_.model.model.state_dict().items():
            assert torch.equal(p, before[name]) == name.startswith("bert."), name

    def test_several_labels_and_numbers(self):
        ids = texts()
        labels = np.arange(39).reshape(13, 3) % 2
        model = classifier(TextBuilder(config()), loss="binary_cross_entropy").fit(ids, labels)
        assert model.predict_proba(ids).shape == (13, 3)
        numbers = fs.SequenceRegressor(TextBuilder(config()), epochs=2, device="cpu")
        assert numbers.fit(ids, np.arange(13.0)).predict(ids).shape == (13,)

    def test_bfloat16_weights_see_all_ids(self):
        torch.manual_seed(0)
        large = config(vocab_size=3000)
        model = TextModel(AutoModelForTokenClassification.from_config(large)).bfloat16()
        est = fs.Estimator(
            model, fs.seqloss(nn.MSELoss()), torch.optim.SGD,
            {"epochs": 1, "batchsize": 9, "seqsize": 9}, device="cpu",
        )  # fmt: skip
        x = torch.tensor([2001, 2002, 2001]).view(1, 3, 1).repeat(4, 1, 1)
        found = est.predict(x)
        assert np.array_equal(found[:, 0], found[:, 2])
        assert not np.array_equal(found[:, 0], found[:, 1])


class TestErrors:
    def test_unknown_ids_are_refused_before_training(self):
        ids = texts()
        ids[7][0] = 40
        model = classifier(TextBuilder(config()))
        with pytest.raises(ValueError, match=r"holds the id 40 .* but the model knows 40 ids"):
            model.fit(ids, np.arange(13) % 3)
        assert not hasattr(model, "estimator_")
        ids[7][0] = 39
        model.fit(ids, np.arange(13) % 3)
        ids[7][0] = 77
        with pytest.raises(ValueError, match=r"holds the id 77 .* but the model knows 40 ids"):
            model.predict(ids)

    @pytest.mark.parametrize(
        ("small", "most"),
        [(config(), 20), (RobertaConfig(**SIZES, max_position_embeddings=12), 10)],
    )
    def test_texts_must_not_be_too_long(self, small, most):
        module = TextModel(AutoModelForSequenceClassification.from_config(small))
        module(torch.full((most, 2, 1), 5))
        with pytest.raises(
            ValueError, match=rf"{most + 1} tokens, but the model has {most} pos.*max_length={most}"
        ):
            module(torch.full((most + 1, 2, 1), 5))

    def test_forms(self):
        module = TextModel(made())
        for x in (torch.ones(3, 2, 2, dtype=torch.int64), torch.ones(3, 2, 1)):
            with pytest.raises(ValueError, match=r"x must be integers \(T, N, 1\)"):
                module(x)
        with pytest.raises(ValueError, match="one id for each token, got 2 features"):
            classifier(TextBuilder(config())).fit(np.ones((9, 4, 2), int), np.arange(9) % 3)
        with pytest.raises(TypeError, match="TextModel needs a model of transformers, got Linear"):
            TextModel(nn.Linear(1, 1))

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        monkeypatch.delitem(sys.modules, "fastseq.huggingface")
        with pytest.raises(fs.MissingFeatureError, match="pip install 'transformers>=5'"):
            __import__("fastseq.huggingface")


class TestTokenizer:
    def test_texts_of_all_forms(self):
        tokenizer = Tokenizer(words())
        wanted = words()(TEXTS)["input_ids"]
        for given in (
            TEXTS,
            tuple(TEXTS),
            np.array(TEXTS),
            np.array(TEXTS, object),
            pd.Series(TEXTS),
        ):
            found = tokenizer.fit_transform(given)
            assert [one.tolist() for one in found] == wanted
            assert all(one.dtype == np.int64 for one in found)
        cut = Tokenizer(words(), max_length=3).fit_transform(TEXTS)
        assert [one.tolist() for one in cut] == words()(TEXTS, truncation=True, max_length=3)[
            "input_ids"
        ]

    def test_errors(self):
        tokenizer = Tokenizer(words())
        for given in (["a", 3], ["a", None], [["a", "b"]], np.array([1.0])):
            with pytest.raises(TypeError, match=r"X must hold strings, but X\[[01]\] is"):
                tokenizer.fit(given)
        for given in ("a good film", np.array([["a"]]), 3, pd.DataFrame({"a": ["a"]})):
            with pytest.raises(TypeError, match="X must be texts"):
                tokenizer.fit(given)
        with pytest.raises(ValueError, match="X has no texts"):
            tokenizer.fit([])
        bare = Words(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
        bare.pre_tokenizer = pre_tokenizers.Whitespace()
        plain = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=bare)).fit(["a"])
        with pytest.raises(ValueError, match=r"X\[1\] has no tokens, got ' '"):
            plain.transform(["a", " "])
        with pytest.raises(TypeError, match="tokenizer must be one of transformers"):
            Tokenizer(bare).fit(["a"])

    def test_in_a_pipeline(self, tmp_path):
        rng = np.random.default_rng(0)
        kinds = rng.choice(["good", "bad"], 40)
        reviews = [
            f"{'what ' * int(n)}a {kind} film"
            for n, kind in zip(rng.integers(0, 4, 40), kinds, strict=True)
        ]
        pipe = make_pipeline(
            Tokenizer(words(), max_length=8), classifier(TextBuilder(config()), epochs=40, lr=5e-3)
        )
        assert pipe.get_params()["tokenizer__max_length"] == 8
        assert clone(pipe).fit(reviews, kinds).score(reviews, kinds) == 1
        assert cross_val_score(pipe, np.array(reviews), kinds, cv=2).mean() > 0.9
        words().save_pretrained(tmp_path)
        read = Tokenizer(tmp_path).fit(reviews)
        for a, b in zip(
            read.transform(reviews), Tokenizer(words()).fit_transform(reviews), strict=True
        ):
            np.testing.assert_array_equal(a, b)


class TestFolders:
    def test_from_pretrained_reads_what_was_trained(self, tmp_path):
        kinds = np.array(["bad", "good", "long"])[[1, 0, 2, 0] * 5]
        pipe = make_pipeline(Tokenizer(words()), classifier(TextBuilder(config())))
        pipe.fit(TEXTS * 5, kinds)
        save_pretrained(pipe, tmp_path / "model")
        assert not [
            p for p in (tmp_path / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl")
        ]
        read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
        assert read.config.id2label == {0: "bad", 1: "good", 2: "long"}
        assert read.config.label2id["good"] == 1
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            found = read(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        np.testing.assert_allclose(
            pipe.decision_function(TEXTS), found.logits, rtol=1e-4, atol=1e-5
        )
        again = make_pipeline(
            Tokenizer(tmp_path / "model"),
            classifier(TextBuilder(str(tmp_path / "model")), epochs=1, lr=1e-12, schedule=None),
        ).fit(TEXTS * 5, kinds)
        np.testing.assert_allclose(
            again.decision_function(TEXTS), found.logits, rtol=1e-4, atol=1e-5
        )

    def test_other_estimators(self, tmp_path):
        ids = texts()
        est = classifier(TextBuilder(config())).fit(ids, np.arange(13) % 3).estimator_
        save_pretrained(est, tmp_path)
        read = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        np.testing.assert_array_equal(direct(read, ids), direct(est.model.model, ids))
        labels = np.arange(39).reshape(13, 3) % 2
        several = classifier(TextBuilder(config()), loss="binary_cross_entropy").fit(ids, labels)
        save_pretrained(several, tmp_path)
        said = json.loads((tmp_path / "config.json").read_text())
        assert said["problem_type"] == "multi_label_classification"
        with pytest.raises(TypeError, match="needs a trained TextModel or SeriesModel, got Chain"):
            ranks = classifier(TextBuilder(config()), loss="ordinal").fit(ids, np.arange(13) % 3)
            save_pretrained(ranks, tmp_path)
        with pytest.raises(TypeError, match="save_pretrained needs an Estimator"):
            save_pretrained(nn.Linear(1, 1), tmp_path)

    def test_a_folder_of_pickles_is_refused(self, tmp_path):
        model = made()
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(OSError, match="safetensors"):
            classifier(TextBuilder(tmp_path)).fit(texts(), np.arange(13) % 3)

    def test_fastseq_s_own_files(self, tmp_path):
        ids, file = texts(), tmp_path / "model.safetensors"
        model = classifier(TextBuilder(config())).fit(ids, np.arange(13) % 3)
        model.save(file)
        read = fs.SequenceClassifier.load(file, TextBuilder(config()), device="cpu")
        np.testing.assert_array_equal(read.predict_proba(ids), model.predict_proba(ids))
        with pytest.raises(ValueError, match="knows 40 ids"):
            read.predict([np.array([41])])
        model.partial_fit(ids, np.arange(13) % 3)
        read.partial_fit(ids, np.arange(13) % 3)
        np.testing.assert_array_equal(read.predict_proba(ids), model.predict_proba(ids))
        est = model.estimator_
        est.save(file)
        bare = fs.Estimator.load(file, lambda: TextModel(made()))
        np.testing.assert_array_equal(direct(bare.model.model, ids), direct(est.model.model, ids))


class TestSeries:
    def test_a_plain_loop_does_the_same(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((12, 24, 2)).astype("f4")
        y = x.mean((1, 2)) + 1
        torch.manual_seed(0)
        plain = PatchTSTForRegression(PatchTSTConfig(**SERIES, num_targets=1))
        model = fs.SequenceRegressor(
            SeriesModel(plain), epochs=1, batchsize=4, shuffle=False, optimizer=plain_sgd, lr=0.05,
            schedule=None, clip_norm=None, scale_x=None, scale_y=None, device="cpu",
        ).fit(x, y)  # fmt: skip
        sgd = torch.optim.SGD(plain.train().parameters(), lr=0.05)
        for part in np.split(np.arange(12), 3):
            found = plain(past_values=torch.from_numpy(x[part])).regression_outputs
            sgd.zero_grad()
            nn.functional.mse_loss(found, torch.from_numpy(y[part])[:, None]).backward()
            sgd.step()
        trained = model.estimator_.model.model
        for (name, p), wanted in zip(trained.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, wanted, rtol=1e-5, atol=1e-5, msg=name)
        with torch.no_grad():
            wanted = plain.eval()(past_values=torch.from_numpy(x)).regression_outputs[:, 0]
        np.testing.assert_allclose(model.predict(x), wanted, rtol=1e-4, atol=1e-5)

    def test_forecasts_and_classes(self, tmp_path):
        x = np.random.default_rng(0).standard_normal((20, 24, 2)).astype("f4")
        torch.manual_seed(0)
        ahead = PatchTSTForPrediction(PatchTSTConfig(**SERIES, prediction_length=3))
        y = x[:, -3:].reshape(20, 6)
        model = fs.SequenceRegressor(SeriesModel(ahead), epochs=2, device="cpu").fit(x, y)
        assert model.predict(x).shape == (20, 6)
        save_pretrained(model, tmp_path)
        read = PatchTSTForPrediction.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            found = model.as_module().scaled.module.model.eval()(past_values=torch.from_numpy(x))
            again = read(past_values=torch.from_numpy(x))
        torch.testing.assert_close(again.prediction_outputs, found.prediction_outputs)
        kinds = PatchTSTForClassification(PatchTSTConfig(**SERIES, num_targets=2))
        signs = classifier(SeriesModel(kinds)).fit(x, x[:, 0, 0] > 0)
        assert signs.predict_proba(x).shape == (20, 2)

    def test_errors(self):
        sizes = {**SERIES, "loss": "nll"}
        spread = SeriesModel(PatchTSTForRegression(PatchTSTConfig(**sizes, num_targets=1)))
        with pytest.raises(TypeError, match="PatchTSTForRegression must predict points"):
            spread(torch.zeros(24, 2, 2))
        masked = SeriesModel(PatchTSTForPretraining(PatchTSTConfig(**SERIES)))
        with pytest.raises(TypeError, match="PatchTSTForPretraining must predict points"):
            masked(torch.zeros(24, 2, 2))
