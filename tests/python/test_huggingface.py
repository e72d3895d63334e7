"""Models of transformers, trained by fastseq, do what transformers and a plain loop do."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from small_transformers import (
    FAR,
    SERIES,
    SIZES,
    classifier,
    config,
    direct,
    made,
    padded,
    plain_sgd,
    texts,
)
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
    DistilBertConfig,
    FNetConfig,
    GPT2Config,
    InformerConfig,
    InformerForPrediction,
    LlamaConfig,
    PatchTSTConfig,
    PatchTSTForClassification,
    PatchTSTForPrediction,
    PatchTSTForPretraining,
    PatchTSTForRegression,
    PatchTSTModel,
    ReformerConfig,
    RobertaConfig,
    XLNetConfig,
    YosoConfig,
)

import fastseq as fs
from fastseq.huggingface import SeriesModel, TextBuilder, TextModel, save_pretrained

GPT2 = {"vocab_size": 40, "n_positions": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, **FAR}
EOS = {"bos_token_id": 39, "eos_token_id": 39}


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


def alone(model, ids):
    """Return a wrapper's probabilities by its bare model, text by text, without any padding."""
    bare = model.estimator_.model.model
    whole = [torch.from_numpy(one)[None] for one in ids]
    with torch.no_grad():
        logits = [bare.eval()(input_ids=x, attention_mask=x * 0 + 1).logits for x in whole]
    return torch.cat(logits).softmax(1).numpy()


class TestPadding:
    """The id 0 is BERT's pad_token_id, and may be a word."""

    def of_all_places(self, count=12, pad=0):
        ids = texts(count, least=4)
        for n, one in enumerate(ids):
            one[[0, 2, -1][n % 3]] = pad
        return ids

    @pytest.mark.parametrize("equal", [False, True])
    def test_where_lengths_are_known_they_alone_decide(self, equal):
        ids, y = self.of_all_places(), np.arange(12) % 3
        if equal:
            ids = [one[[0, 1, 2, -1]] for one in ids]
        model = classifier(TextBuilder(config())).fit(ids, y)
        wanted = alone(model, ids)
        assert wanted.std(0).min() > 0.01
        np.testing.assert_allclose(model.predict_proba(ids), wanted, rtol=1e-4, atol=1e-5)
        one_by_one = np.concatenate([model.predict_proba([one]) for one in ids])
        np.testing.assert_allclose(one_by_one, wanted, rtol=1e-4, atol=1e-5)
        again = classifier(
            TextModel(made()), epochs=1, optimizer=plain_sgd, lr=1e-12, schedule=None, batchsize=4
        ).fit(ids, y)
        losses = -np.log(alone(again, ids)[np.arange(12), y])
        assert abs(again.history_[-1]["loss"] - losses.mean()) < 1e-5

    @pytest.mark.parametrize("shape", ["(N, T)", "(N, T, 1)"])
    def test_of_arrays_only_the_ends_are_masked(self, shape):
        x = np.array([[0, 0, 5, 0, 6], [7, 0, 8, 0, 0], [9, 0, 0, 4, 3], [0, 0, 0, 0, 0]] * 3)
        mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]] * 3)
        given = x if shape == "(N, T)" else x[..., None]
        model = classifier(TextBuilder(config())).fit(given, np.arange(12) % 3)
        bare = model.estimator_.model.model.eval()
        with torch.no_grad():
            wanted = bare(input_ids=torch.from_numpy(x), attention_mask=torch.from_numpy(mask))
        found = model.decision_function(given)
        np.testing.assert_allclose(found, wanted.logits, rtol=1e-4, atol=1e-5)
        made_of_it = model.as_module()(torch.from_numpy(given))
        np.testing.assert_allclose(made_of_it, wanted.logits, rtol=1e-4, atol=1e-5)

    def test_a_decoder_may_pad_with_its_end_token(self):
        """As GPT-2 does: what is inside a text counts, and padding does not."""
        small = GPT2Config(**GPT2, **EOS)
        ids, y = texts(12, least=4), np.arange(12) % 3
        for one in ids[::2]:
            one[1] = 39
        model = classifier(TextBuilder(small, pad_token_id=39)).fit(ids, y)
        assert small.pad_token_id is None
        wanted = alone(model, ids)
        np.testing.assert_allclose(model.predict_proba(ids), wanted, rtol=1e-4, atol=1e-5)
        array = padded(ids, 39)[0].numpy()
        np.testing.assert_allclose(model.predict_proba(array), wanted, rtol=1e-4, atol=1e-5)
        bare = model.estimator_.model.model
        np.testing.assert_allclose(
            torch.from_numpy(direct(bare, ids, 39)).softmax(1), wanted, rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize(
        "small",
        [
            XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=32, **FAR),
            YosoConfig(**SIZES, **FAR),
        ],
        ids=["xlnet", "yoso"],
    )  # fmt: skip
    def test_models_that_see_padding_are_refused(self, small):
        model = classifier(TextBuilder(small))
        with pytest.raises(ValueError, match="other logits for a text if padding follows it"):
            model.fit(texts(), np.arange(13) % 3)
        assert not hasattr(model, "estimator_")
        array = padded(texts(), small.pad_token_id)[0].numpy()
        with pytest.raises(ValueError, match="other logits for a text if padding follows it"):
            model.fit(array, np.arange(13) % 3)

    def test_models_that_see_padding_are_refused_in_predictions(self):
        small = ReformerConfig(
            vocab_size=40, hidden_size=16, num_attention_heads=2, attention_head_size=8,
            feed_forward_size=32, axial_pos_embds=False, is_decoder=False,
            attn_layers=["local"], local_attn_chunk_length=4,
        )  # fmt: skip
        torch.manual_seed(0)
        module = TextModel(AutoModelForSequenceClassification.from_config(small)).eval()
        x = torch.randint(2, 39, (12, 3, 1))
        module(x, lengths=torch.tensor([12, 12, 12]))
        with pytest.raises(ValueError, match="other logits for a text if padding follows it"):
            module(x, lengths=torch.tensor([12, 3, 7]))

    def test_models_that_see_padding_may_train_without(self):
        small = XLNetConfig(vocab_size=40, d_model=16, n_layer=1, n_head=2, d_inner=32, **FAR)
        ids = texts()
        model = classifier(TextBuilder(small), batchsize=1, epochs=1).fit(ids, np.arange(13) % 3)
        found = model.predict_proba(ids)
        np.testing.assert_allclose(found, alone(model, ids), rtol=1e-4, atol=1e-5)
        sizes = {name: size for name, size in SIZES.items() if name != "num_attention_heads"}
        with pytest.raises(
            TypeError, match="FNetForSequenceClassification takes no attention_mask"
        ):
            classifier(TextBuilder(FNetConfig(**sizes))).fit(ids, np.arange(13) % 3)

    @pytest.mark.parametrize("amp", [None, "bf16"])
    def test_looking_for_it_changes_nothing(self, amp):
        ids, y = texts(), np.arange(13) % 3
        looking, not_looking = (TextModel(made(hidden_dropout_prob=0.5)) for _ in range(2))
        not_looking._heeds_mask = True
        found = [classifier(one, amp=amp).fit(ids, y) for one in (looking, not_looking)]
        parts = [model.estimator_.model for model in found]
        assert parts[0]._heeds_mask
        for a, b in zip(*(part.parameters() for part in parts), strict=True):
            assert torch.equal(a, b)


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

    def test_models_that_do_not_fit(self):
        bert = made()
        for model, said in (
            (BertModel(config()), "TextModel needs a model with a head.*BertModel has none"),
            (PatchTSTForRegression(PatchTSTConfig(**SERIES)), "takes no input_ids"),
        ):
            with pytest.raises(TypeError, match=said):
                TextModel(model)
        informer = InformerForPrediction(InformerConfig(prediction_length=3, d_model=8))
        for model, said in (
            (bert, "SeriesModel needs .* but BertForSequenceClassification takes no past_values"),
            (PatchTSTModel(PatchTSTConfig(**SERIES)), "PatchTSTModel has none"),
            (informer, "alone, such as PatchTST.*InformerForPrediction needs .*past_time_features"),
        ):
            with pytest.raises(TypeError, match=said):
                SeriesModel(model)
        ids, y = texts(), np.arange(13) % 3
        for bare in (bert, config(), lambda n_in, n_out, rng: bert):
            with pytest.raises(TypeError, match=r"must be TextBuilder\(config\), TextModel\(model"):
                classifier(bare).fit(ids, y)

    @pytest.mark.parametrize(
        "small",
        [GPT2Config(**GPT2, **EOS), LlamaConfig(**SIZES, num_key_value_heads=2)],
        ids=["gpt2", "llama"],
    )
    def test_decoders_need_a_pad_token_id(self, small):
        ids, y = texts(), np.arange(13) % 3
        with pytest.raises(ValueError, match=r"no pad_token_id: set config.pad_token_id = "):
            classifier(TextBuilder(small)).fit(ids, y)
        classifier(TextBuilder(small, pad_token_id=0), epochs=1).fit(ids, y)

    def test_builders(self, tmp_path):
        for source, said in (
            (None, "a config of transformers or a folder, got NoneType"),
            (made(), r"got BertForSequenceClassification: pass module=TextModel\(model\)"),
        ):
            with pytest.raises(TypeError, match=said):
                TextBuilder(source)
        with pytest.raises(TypeError, match="takes no num_labels"):
            TextBuilder(config(), num_labels=3)
        with pytest.raises(TypeError, match="BertConfig has no padding, got padding=3"):
            classifier(TextBuilder(config(), padding=3)).fit(texts(), np.arange(13) % 3)
        for missing in (tmp_path / "none", str(tmp_path / "none"), "./none", ""):
            with pytest.raises(FileNotFoundError, match="there is no folder"):
                classifier(TextBuilder(missing)).fit(texts(), np.arange(13) % 3)
        made().save_pretrained(tmp_path)
        read = TextBuilder(tmp_path, pad_token_id=5)
        assert read.config.pad_token_id == read.pad_token_id == 5
        with pytest.raises(
            ValueError, match=r"a head for 3 classes, but y needs 2: pass TextModel"
        ):
            classifier(read).fit(texts(), np.arange(13) % 2)
        model = classifier(TextModel(AutoModelForSequenceClassification.from_pretrained(
            tmp_path, num_labels=2, ignore_mismatched_sizes=True
        )))  # fmt: skip
        assert model.fit(texts(), np.arange(13) % 2).predict_proba(texts()).shape == (13, 2)

    def test_a_builder_must_tell_of_padding(self):
        def build(n_in, n_out, rng):
            return TextModel(made())

        build.num_embeddings = 40
        with pytest.raises(ValueError, match=r"takes the id 0 for padding.*its builder needs it"):
            classifier(build).fit(texts(), np.arange(13) % 3)

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        monkeypatch.delitem(sys.modules, "fastseq.huggingface")
        with pytest.raises(fs.MissingFeatureError, match="pip install 'transformers>=5'"):
            __import__("fastseq.huggingface")


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
        model = fs.SequenceRegressor(
            SeriesModel(ahead), epochs=2, scale_x=None, scale_y=None, device="cpu"
        ).fit(x, y)
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

    def test_series_of_another_form(self):
        kinds = SeriesModel(PatchTSTForClassification(PatchTSTConfig(**SERIES, num_targets=2)))
        x = np.random.default_rng(0).standard_normal((20, 24, 2)).astype("f4")
        y = np.arange(20) % 2
        for given, said in (
            (x[:, :20], "series of 24 steps, but x has 20: make it with context_length=20, or cut"),
            ([one[: 24 - n % 2] for n, one in enumerate(x)], "series of 24 steps, but x has 23"),
            (x[..., :1], "series of 2 features, but x has 1: make it with num_input_channels=1"),
        ):
            with pytest.raises(ValueError, match=said):
                classifier(kinds).fit(given, y)
