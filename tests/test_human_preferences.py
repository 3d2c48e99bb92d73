"""The experiment on real pairs, on made-up ones: who learns from what, and what is written."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("torch")

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from nashpref.experiments import human_models as models
from nashpref.experiments import human_preferences as human
from nashpref.llm.data import Pair
from nashpref.llm.encoding import collate_pairs
from nashpref.llm.playground import tiny_tokenizer
from nashpref.llm.preferences import BradleyTerryModel, GeneralPreferenceModel, PairwisePreferenceModel

FILLER = [f"w{i}" for i in range(30)]


def made_up(count, *, soft=False, seed=0):
    """Dialogues of 1–3 that begin alike; the answer with "kind" in it is preferred, the other is "rude"."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        answers = [f"{word} {' '.join(rng.choice(FILLER, rng.integers(3, 9)))}" for word in ("kind", "rude")]
        opening = f"\n\nHuman: opening{i // 3}"
        row = {"prompt": f"{opening}\n\nAssistant: yes\n\nHuman: turn{i}\n\nAssistant:"}
        if soft:
            turned = i % 2
            row |= {"response_a": answers[turned], "response_b": answers[1 - turned]}
            row |= {"p_a": 0.5 if i % 10 == 0 else [5 / 6, 1 / 6][turned]}
        else:
            row |= {"chosen": answers[0], "rejected": answers[1]}
        rows.append(row)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with an encoder of three layers."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer([*FILLER, "kind", "rude"])
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    BertModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def small(data, **options):
    scratch = models.Training(epochs=12, learning_rate=1e-2, weight_decay=0.0)
    defaults = {
        "folds": 3,
        "tested": 3,
        "members": 2,
        "max_tokens": 64,
        "tiny": models.Tiny(vocabulary=60, width=32, dropout=0.0),
        "scratch": scratch,
        "layers": 2,
        "head": scratch,
        "general_head": scratch,
        "resamples": 200,
    }
    return human.Settings(data, **(defaults | options))


def test_pairs_that_begin_alike_are_one_group_and_groups_are_never_split(tmp_path):
    data = human.load(small(write(tmp_path / "pairs.jsonl", made_up(40))))
    assert len(np.unique(data.groups)) == math.ceil(40 / 3)
    assert all(len(set(data.groups[3 * k : 3 * k + 3])) == 1 for k in range(14))
    part = human.partition(data.groups, 5, seed=0)
    for k in range(5):
        assert not set(data.groups[part == k]) & set(data.groups[part != k])
        assert len(np.unique(data.groups[part == k])) in (2, 3)
    assert (part != human.partition(data.groups, 5, seed=1)).any()
    with pytest.raises(ValueError, match="14 groups of pairs: 15 parts"):
        human.partition(data.groups, 15, seed=0)


def test_nobody_is_asked_about_what_it_has_learnt_from(tmp_path):
    data = human.load(small(write(tmp_path / "pairs.jsonl", made_up(60))))
    calls = []

    def learner(known, judged, seed):
        calls.append((known, judged))
        return np.ones(len(judged))

    settings = small("", members=4)
    fold = human.partition(data.groups, 3, seed=0)
    outside, inside = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    human.committee("spy, hard", learner, data, data.labels, settings).predict(outside, inside)
    assert len(calls) == 4
    for known, judged in calls:
        assert not set(data.groups[known]) & set(data.groups[judged])
        assert set(inside) <= set(judged.tolist())
        assert set(known) | set(judged) == set(range(60))
    left_out = [set(judged) - set(inside) for _, judged in calls]
    assert sorted(i for part in left_out for i in part) == outside.tolist()


def test_the_length_rule_learns_its_direction_from_what_is_known():
    lengths = np.array([1.0, 2.0, -1.0, -1.0, 0.0, 3.0])
    labels = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    data = human.Data([Pair("", "", "")] * 6, labels, np.arange(6), lengths)
    known = np.arange(4)  # the shorter answer won three times out of four
    odds = math.log(3.5 / 1.5)
    np.testing.assert_allclose(human.length_rule(data, known, np.array([4, 5])), [0.0, -odds])
    flipped = data._replace(labels=1.0 - labels)
    np.testing.assert_allclose(human.length_rule(flipped, known, np.array([4, 5])), [0.0, odds])


def test_summary_counts_and_resamples_groups_of_the_same_pairs():
    labels, groups = np.array([1.0, 1.0, 0.2, 0.0]), np.array([0, 0, 1, 2])
    logits = {human.WORDS: np.array([1.0, -1.0, -1.0, 0.0]), "sure": np.array([9.0, 9.0, -9.0, -9.0])}
    table = human.summary(logits, labels, groups, small("", resamples=5000))
    assert table["method"].tolist() == [human.WORDS, "sure"]
    assert table["accuracy"].tolist() == [(1 + 0 + 1 + 0.5) / 4, 1.0]
    assert table["difference"].tolist() == [0.0, 1.5 / 4]
    assert table["difference_low"][0] == table["difference_high"][0] == 0.0
    assert table["accuracy_low"][1] == table["accuracy_high"][1] == 1.0
    assert table["accuracy_low"][0] == 0.5  # group 0, or group 2, or both alone
    assert table["accuracy_high"][0] == 1.0  # group 1 alone
    loss = [math.log1p(math.exp(-1)), math.log1p(math.e), 0.2 + math.log1p(math.exp(-1)), math.log(2)]
    assert table["log_loss"][0] == pytest.approx(np.mean(loss), rel=1e-12)


def test_logistic_uses_soft_labels_and_has_no_intercept():
    p = np.array([0.7, 0.9])
    X = np.array([[1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(human.logistic(X, p, 1e8), np.log(p / (1 - p)), rtol=1e-3)


def test_a_head_on_known_states_judges_as_the_whole_model(encoder):
    pairs = [Pair("", row["chosen"], row["rejected"]) for row in made_up(12)]
    for kind in (BradleyTerryModel, GeneralPreferenceModel, PairwisePreferenceModel):
        reader = PairwisePreferenceModel if kind is PairwisePreferenceModel else BradleyTerryModel
        states = models.read_states(reader, pairs, encoder, 2, 64)
        whole = kind.from_backbone(
            models.lowest_layers(encoder, 2),
            AutoTokenizer.from_pretrained(encoder),
            pooling="mean",
        )
        head = kind(models.PreferenceConfig(pooling="last"), models.States(states))
        head.head.load_state_dict(whole.head.state_dict())
        logits = models.judge(head, models.encoded_states(pairs, np.arange(12)))
        assert np.ptp(logits) > 1e-4
        np.testing.assert_allclose(logits, models.judge(whole, whole.encode_all(pairs)), atol=1e-5)


def test_the_pairwise_model_reads_the_first_answer_beside_the_second(encoder):
    model = PairwisePreferenceModel.from_backbone(encoder)
    pairs = [Pair("w1", "kind w2", "rude w3 w4"), Pair("w1", "rude w3 w4", "kind w2")]
    pairs += [replace(pairs[0], rejected="rude w3 w5")]
    tokens = collate_pairs(model.encode_all(pairs), model.encoder.pad_id).tokens
    assert tokens.completion_mask.sum(dim=1).tolist() == [3, 4, 3, 4, 3, 4]  # with the end-of-sequence token
    logits = models.judge(model, model.encode_all(pairs))
    assert logits[0] == pytest.approx(-logits[1], abs=1e-6)
    assert abs(logits[2] - logits[0]) > 1e-4
    both = model.encode(Pair("w1 " * 30, "kind " * 99, "rude " * 99))
    assert len(both) == len(both.chosen) > 200


def columns(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def test_all_methods_learn_what_can_be_learnt(tmp_path, encoder):
    tables = human.run(
        small(write(tmp_path / "pairs.jsonl", made_up(120, soft=True)), encoder=encoder, tested=1)
    )
    results = tables["results"]
    kinds = [
        f"{kind}, {start}, {labels}{length}"
        for labels in ("hard", "soft")
        for start in ("scratch", "pretrained")
        for kind in models.KINDS
        for length in ("", " + length")
    ]
    assert results["method"].tolist() == [human.LENGTH, human.WORDS, *kinds]
    assert len(set(results["pairs"])) == 1
    accuracy = dict(zip(results["method"].tolist(), results["accuracy"].tolist(), strict=True))
    assert accuracy[human.WORDS] > 0.95
    assert all(
        accuracy[f"{kind}, scratch, {labels}"] > 0.85 for kind in models.KINDS for labels in ("hard", "soft")
    )
    assert all(accuracy[f"{kind}, pretrained, soft"] > 0.7 for kind in models.KINDS)
    predictions = tables["predictions"]
    assert set(predictions) == {"pair", "fold", "group", "label", human.LENGTH, human.WORDS, *kinds}
    assert all(np.isfinite(values).all() for values in predictions.values())
    assert 0.5 not in predictions["label"]


def test_the_quick_command_writes_numbers_and_a_figure_and_no_text(tmp_path, encoder, capsys):
    data = write(tmp_path / "pairs.jsonl", made_up(60))
    arguments = [data, "--encoder", encoder, "--quick", "--out", str(tmp_path / "out")]
    assert human.main(arguments) == 0
    assert "TF-IDF + length" in capsys.readouterr().out
    folder = tmp_path / "out" / human.NAME / "pairs"
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "env.json",
        "predictions.csv",
        "results.csv",
    ]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["tested"], config["members"], config["scratch"]["epochs"]) == (1, 2, 1)
    results = columns(folder / "results.csv")
    assert len(results["method"]) == 2 + 2 * 2 * len(models.KINDS)
    for low, value, high in (
        ("accuracy_low", "accuracy", "accuracy_high"),
        ("log_loss_low", "log_loss", "log_loss_high"),
    ):
        for a, b, c in zip(*(map(float, results[name]) for name in (low, value, high)), strict=True):
            assert a - 1e-9 <= b <= c + 1e-9
    for suffix in ("png", "pdf"):
        assert (tmp_path / "out" / "figures" / f"{human.NAME}.{suffix}").stat().st_size > 5000
    written = "".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    assert not any(word in written for word in ("kind w", "rude w", "opening1"))


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    data = write(tmp_path / "pairs.jsonl", made_up(60))
    for arguments, message in (
        ([data, "--encoder", "no_such_package"], "no_such_package: neither a folder nor a package"),
        ([write(tmp_path / "few.jsonl", made_up(3))], "1 groups of pairs: 5 parts"),
        ([str(tmp_path / "absent.jsonl")], "absent.jsonl"),
    ):
        assert human.main([*arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
