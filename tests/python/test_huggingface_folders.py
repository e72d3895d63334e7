"""Tokenizers in pipelines, and folders that from_pretrained of transformers reads."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_transformers import (
    SERIES,
    TEXTS,
    classifier,
    config,
    direct,
    made,
    texts,
    words,
)
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PatchTSTConfig,
    PatchTSTForRegression,
    PreTrainedTokenizerFast,
)

import fastseq as fs
from fastseq.huggingface import SeriesModel, TextBuilder, TextModel, Tokenizer, save_pretrained

KINDS = np.array(["bad", "good", "long", "bad"])


def lowered(given):
    return [text.lower() for text in given]


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

    @pytest.mark.parametrize("most", [0, 1, 2, -1, True, "a", 2.5])
    def test_texts_must_be_cut_to_more_than_the_special_tokens(self, most):
        for tokenizer in (
            Tokenizer(words(), max_length=most),
            Tokenizer(words()).fit(TEXTS).set_params(max_length=most),
        ):
            with pytest.raises(
                ValueError, match=r"max_length must be an integer of at least 3, as .* adds 2 tok"
            ):
                tokenizer.fit(TEXTS) if most == 1 else tokenizer.fit_transform(TEXTS)
        kept = Tokenizer(words(), max_length=np.int64(3)).fit(TEXTS)
        assert {len(one) for one in kept.transform(TEXTS)} == {3}
        kept.set_params(max_length=most)
        with pytest.raises(ValueError, match="max_length must be an integer of at least 3"):
            kept.transform(TEXTS)

    def test_it_is_shown_in_one_line(self):
        tokenizer = Tokenizer(words(), max_length=8)
        assert repr(tokenizer) == f"Tokenizer({type(words()).__name__}, max_length=8)"
        assert repr(Tokenizer("folder")) == "Tokenizer('folder')"

    def test_pandas_does_not_change_ids(self):
        pipe = make_pipeline(Tokenizer(words()), classifier(TextBuilder(config())))
        wanted = pipe.fit(TEXTS * 5, [0, 1] * 10).predict_proba(TEXTS)
        pipe.set_output(transform="pandas")
        np.testing.assert_array_equal(pipe.predict_proba(TEXTS), wanted)

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

    @pytest.mark.parametrize("scale", [{}, {"scale_x": None}, {"scale_y": None}])
    def test_scaling_is_refused(self, scale, tmp_path):
        """Without it, the folder would predict other numbers."""
        x = np.random.default_rng(0).normal(1000, 50, (20, 24, 2)).astype("f4")
        series = SeriesModel(PatchTSTForRegression(PatchTSTConfig(**SERIES, num_targets=1)))
        model = fs.SequenceRegressor(series, epochs=2, device="cpu", **scale).fit(x, x.mean((1, 2)))
        with pytest.raises(
            ValueError, match=r"cannot write the scaling.*scale_x=None, scale_y=None"
        ):
            save_pretrained(model, tmp_path / "model")
        with pytest.raises(ValueError, match="cannot write the scaling"):
            save_pretrained(model.estimator_, tmp_path / "model")
        assert not (tmp_path / "model").exists()
        model.set_params(scale_x=None, scale_y=None).fit(x, x.mean((1, 2)))
        save_pretrained(model, tmp_path / "model")
        read = PatchTSTForRegression.from_pretrained(tmp_path / "model").eval()
        with torch.no_grad():
            found = read(past_values=torch.from_numpy(x)).regression_outputs[:, 0]
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-4, atol=1e-6)

    def test_scaling_by_sequence_is_refused(self, tmp_path):
        x = np.random.default_rng(0).standard_normal((20, 24, 2)).astype("f4")
        series = SeriesModel(PatchTSTForRegression(PatchTSTConfig(**SERIES, num_targets=1)))
        model = fs.SequenceRegressor(series, epochs=2, scale_x="instance", device="cpu")
        with pytest.raises(
            TypeError, match=r"got Chain: it is among .* scale_x; pass scale_x=None"
        ):
            save_pretrained(model.fit(x, x.mean((1, 2))), tmp_path)

    def test_numbers_of_texts(self, tmp_path):
        pipe = make_pipeline(
            Tokenizer(words()), fs.SequenceRegressor(TextBuilder(config()), epochs=2, device="cpu")
        )
        with pytest.raises(ValueError, match="cannot write the scaling"):
            save_pretrained(pipe.fit(TEXTS * 5, np.arange(20) + 5000.0), tmp_path)
        ones = [-1.0, 1.0] * 10  # scaling leaves these as they are
        save_pretrained(pipe.fit(TEXTS * 5, ones), tmp_path)
        predict = transformers.pipeline("text-classification", str(tmp_path))
        assert predict.model.config.problem_type == "regression"
        found = [one["score"] for one in predict(TEXTS)]
        np.testing.assert_allclose(found, pipe.predict(TEXTS), rtol=1e-4, atol=1e-5)

    def test_max_length_is_kept(self, tmp_path):
        own = words()
        pipe = make_pipeline(Tokenizer(own, max_length=4), classifier(TextBuilder(config())))
        save_pretrained(pipe.fit(TEXTS * 5, np.tile(KINDS, 5)), tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 4
        assert own.model_max_length > 1e9
        predict = transformers.pipeline("text-classification", str(tmp_path))
        long = [text * 20 for text in TEXTS]
        labels = [one["label"] for one in predict(long, truncation=True)]
        assert labels == pipe.predict(long).tolist()

    def test_a_tokenizer_anywhere_in_a_pipeline(self, tmp_path):
        clean, tokenizer = FunctionTransformer(lowered), make_pipeline(Tokenizer(words()), None)
        pipe = make_pipeline(clean, tokenizer, classifier(TextBuilder(config())))
        pipe.fit(TEXTS * 5, np.tile(KINDS, 5))
        with pytest.warns(UserWarning, match="before the Tokenizer, FunctionTransformer"):
            save_pretrained(pipe, tmp_path)
        assert (
            AutoTokenizer.from_pretrained(tmp_path)("bad")["input_ids"]
            == words()("bad")["input_ids"]
        )

    def test_a_tokenizer_of_another_model_is_not_kept(self, tmp_path):
        words().save_pretrained(tmp_path)
        model = classifier(TextBuilder(config())).fit(texts(), np.arange(13) % 3)
        with pytest.raises(FileExistsError, match=r"has a tokenizer, tokenizer.json, which may"):
            save_pretrained(model, tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
        pipe = make_pipeline(Tokenizer(words()), model).fit(TEXTS * 5, np.tile(KINDS, 5))
        save_pretrained(pipe, tmp_path)
        save_pretrained(pipe, tmp_path)

    def test_padding_must_be_the_same(self, tmp_path):
        pipe = make_pipeline(Tokenizer(words()), classifier(TextBuilder(config(pad_token_id=5))))
        said = r"pad_token_id is 0, .* is 5, .*pad_token_id=0\)"
        with pytest.raises(ValueError, match=said):
            pipe.fit(TEXTS * 5, np.tile(KINDS, 5))
        tokenizer, model = pipe[0], pipe[1]
        model.fit(list(tokenizer.fit_transform(TEXTS * 5)), np.tile(KINDS, 5))
        with pytest.raises(ValueError, match=said):
            save_pretrained(make_pipeline(tokenizer, model), tmp_path)
        pipe.set_params(
            sequenceclassifier__module=TextBuilder(config(pad_token_id=5), pad_token_id=0)
        )
        save_pretrained(pipe.fit(TEXTS * 5, np.tile(KINDS, 5)), tmp_path)

    def test_nothing_is_written_if_another_rank_does_not_make_the_call(self, tmp_path, monkeypatch):
        est = classifier(TextBuilder(config())).fit(texts(), np.arange(13) % 3)

        def missing(_):
            raise fs.CommunicationError("rank 1 has exited")

        monkeypatch.setattr("fastseq.distributed.replicas.Replicas.meet", missing)
        with pytest.raises(fs.CommunicationError):
            save_pretrained(est, tmp_path)
        assert not list(tmp_path.iterdir())

    def test_what_cannot_be_written(self, tmp_path):
        pipe = make_pipeline(Tokenizer(words()), classifier(TextBuilder(config())))
        with pytest.raises(NotFittedError, match="not fitted yet"):
            save_pretrained(pipe, tmp_path)
        search = GridSearchCV(pipe, {"tokenizer__max_length": [8]}, cv=2).fit(
            TEXTS * 5, [0, 1] * 10
        )
        with pytest.raises(TypeError, match="got GridSearchCV: pass its best_estimator_"):
            save_pretrained(search, tmp_path)
        save_pretrained(search.best_estimator_, tmp_path / "model")
        (tmp_path / "file").write_text("x")
        with pytest.raises(NotADirectoryError, match=r"must be a folder, but .*file' is a file"):
            save_pretrained(search.best_estimator_, tmp_path / "file")
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            Tokenizer(tmp_path / "none").fit(TEXTS)
