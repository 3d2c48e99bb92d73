"""Iterative DPO: rounds get better, the best is kept, and a run that was killed is the run that was not."""

import copy
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nashpref.cli import main
from nashpref.llm import iterative, losses
from nashpref.llm.command import read_method, train
from nashpref.llm.encoding import Encoder, collate_pairs
from nashpref.llm.iterative import iterate
from nashpref.llm.logprobs import completion_logps
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.preferences import from_reward
from nashpref.llm.rounds import Rounds, read_pairs, select, win_rates_among
from nashpref.llm.training import TrainConfig, fit

TOKENIZER = tiny_tokenizer(["ab?"], level="character")
ENCODER = Encoder(TOKENIZER)
PROMPTS = ["?", "a?", "b?", "ab?"]
MORE_A = from_reward(lambda prompts, responses: [r.count("a") - r.count("b") for r in responses])
ROUNDS = Rounds(count=3, samples=6, max_new_tokens=4, threshold=0.1, pairs="all", validation_samples=8)
DPO = partial(losses.dpo, beta=0.5)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def policy():
    return tiny_causal_lm(TOKENIZER, layers=1, width=16, context=16)


def config(output, **options):
    return TrainConfig(
        **{"output": str(output), "epochs": 3, "batch_size": 4, "learning_rate": 1e-2, **options}
    )


def run(output, model=None, preference=MORE_A, rounds=ROUNDS, loss=DPO, train=None, **options):
    model = policy() if model is None else model
    result = iterate(model, ENCODER, PROMPTS, preference, loss, rounds, train or config(output), **options)
    return result, {name: p.detach().clone() for name, p in model.named_parameters()}


def pairs_of(output, t):
    lines = Path(output, "training", f"{t:04d}", "pairs", "pairs.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DPO, {"pairs": "extremes"}),
        (DPO, {"anchor": 1.0}),
        (partial(losses.ipo, beta=0.2), {"anchor": 0.5, "labels": "soft", "threshold": 0.0}),
    ],
    ids=["dno_prct", "dpo", "inpo"],
)
def test_the_win_rate_rises_over_rounds(tmp_path, loss, options):
    rounds = dataclasses.replace(ROUNDS, **options)
    epochs = 18 if rounds.pairs == "extremes" else 6
    result, _ = run(tmp_path, loss=loss, rounds=rounds, train=config(tmp_path, epochs=epochs))
    rates = [each["win_rate"] for each in result.rounds]
    assert 0.5 == rates[0] < rates[1] < rates[2]
    assert rates[3] > 0.65
    assert result.rounds[3]["win_rate_low"] < rates[3] < result.rounds[3]["win_rate_high"]
    assert result.stopped == ""
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.rounds


def test_a_round_is_on_its_own_samples_that_are_far_enough_apart(tmp_path):
    rounds = dataclasses.replace(ROUNDS, pairs="extremes", threshold=0.3)
    run(tmp_path, rounds=rounds)
    for t in (1, 2, 3):
        rows = pairs_of(tmp_path, t)
        assert len({row["prompt"] for row in rows}) == len(rows) <= len(PROMPTS)
        for row, pair in zip(rows, read_pairs(rows), strict=True):
            assert row["win_rates"][0] - row["win_rates"][1] >= 0.3
            for name, each in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                said = TOKENIZER.decode(each.ids[each.start :]).removesuffix("<eos>")
                assert (said, TOKENIZER.decode(each.ids[: each.start])) == (row[name], row["prompt"])
                assert len(each.ids) - each.start <= rounds.max_new_tokens  # nothing was added to it
    assert pairs_of(tmp_path, 1) != pairs_of(tmp_path, 2)


@pytest.mark.parametrize("anchor", [0.0, 0.25, 1.0])
def test_the_reference_of_a_round(tmp_path, monkeypatch, anchor):
    seen = []

    def watched(objective, examples, *arguments, **options):
        seen.append((copy.deepcopy(objective.model), examples))
        return fit(objective, examples, *arguments, **options)

    monkeypatch.setattr(iterative, "fit", watched)
    run(tmp_path, rounds=dataclasses.replace(ROUNDS, count=2, anchor=anchor))
    start, examples = seen[1]
    tokens = collate_pairs([each.pair for each in examples], ENCODER.pad_id).tokens
    with torch.no_grad():
        now, first = (completion_logps(model, tokens) for model in (start, policy()))
    assert (now - first).abs().max() > 0.1
    reference = torch.tensor([e.chosen for e in examples] + [e.rejected for e in examples])
    torch.testing.assert_close(reference, anchor * first + (1.0 - anchor) * now, rtol=1e-5, atol=1e-5)


class Turning:
    """Once the pairs of the second round are there, the opposite is preferred."""

    def __init__(self, output):
        self.second, self.asked = output / "training" / "0002", 0

    def matrix(self, prompt, responses):
        self.asked += 1
        P = MORE_A.matrix(prompt, responses)
        return P.T if self.second.exists() else P

    def __call__(self, *asked):
        return MORE_A(*asked)


def test_the_best_round_is_kept(tmp_path):
    result, weights = run(tmp_path, preference=Turning(tmp_path))
    rates = [each["win_rate"] for each in result.rounds]
    assert result.best == int(np.argmax(rates)) == 2
    assert rates[3] < rates[2]
    rounds = dataclasses.replace(ROUNDS, count=2)
    two, of_two = run(tmp_path / "two", preference=Turning(tmp_path / "never"), rounds=rounds)
    assert two.rounds == result.rounds[:3]
    same(weights, of_two)


def test_what_evaluate_says_is_kept_with_the_round(tmp_path):
    def evaluate(model):
        assert not model.training
        return {"norm": model.lm_head.weight.norm()}

    result, weights = run(tmp_path, evaluate=evaluate)
    assert result.rounds[result.best]["norm"] == pytest.approx(weights["lm_head.weight"].norm().item())
    assert len({each["norm"] for each in result.rounds}) == 4


class PowerCut(BaseException):
    """Nothing that anyone would catch."""


def cut(monkeypatch, where, call):
    """Let the n-th call of a function fail: before it is done, or once it is."""
    module, name, after = where
    calls, original = [], getattr(module, name)

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == call and not after:
            raise PowerCut
        value = original(*arguments, **options)
        if len(calls) == call and after:
            raise PowerCut
        return value

    monkeypatch.setattr(module, name, failing)


SHORT = dataclasses.replace(ROUNDS, count=2, samples=4)


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peaceful")
    return folder, *run(folder, preference=Turning(folder / "never"), rounds=SHORT, train=config(folder))


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize(
    "where",
    [
        (iterative, "write_folder", False),
        (iterative, "write_folder", True),
        (iterative, "fit", False),
        (iterative, "fit", True),
        (iterative, "_win_rate", True),
        (iterative.checkpoints, "save", True),
        (losses, "dpo", None),
    ],
    ids=["before the pairs", "after the pairs", "before", "after", "validated", "saved", "within"],
)
def test_a_run_that_was_killed_is_the_run_that_was_not(tmp_path, monkeypatch, peaceful, where, call):
    train, preference = config(tmp_path, save_every=2), Turning(tmp_path / "never")
    with monkeypatch.context() as patch:
        loss = DPO
        if where[1] == "dpo":  # in the middle of a round, between two checkpoints
            cut(patch, (losses, "dpo", False), 8 + 16 * (call - 1))
            loss = lambda *arguments, **options: losses.dpo(*arguments, beta=0.5, **options)  # noqa: E731
        else:
            cut(patch, where, call + (where[1] == "save"))  # the first that is saved is the start
        with pytest.raises(PowerCut):
            run(tmp_path, train=train, preference=preference, rounds=SHORT, loss=loss)
    result, weights = run(tmp_path, train=train, preference=preference, rounds=SHORT)
    lost = where[1:] == ("write_folder", False)
    assert preference.asked == len(PROMPTS) * (2 + lost)  # what is on disk is not asked again
    folder, expected, expected_weights = peaceful
    assert result == expected
    same(weights, expected_weights)
    for t in (1, 2):
        assert pairs_of(tmp_path, t) == pairs_of(folder, t)
    again, weights = run(tmp_path, train=train, preference=preference, rounds=SHORT)  # nothing is left to do
    assert again == expected
    same(weights, expected_weights)


def test_a_damaged_round_is_named_and_made_again(tmp_path, capsys, peaceful):
    _, expected, expected_weights = peaceful
    options = {"preference": Turning(tmp_path / "never"), "rounds": SHORT}
    run(tmp_path, **options)
    weights = tmp_path / "rounds" / "step-00000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    result, again = run(tmp_path, **options)
    assert "going on after round 1" in capsys.readouterr().err
    assert result == expected
    same(again, expected_weights)


def test_no_pair_far_enough_apart(tmp_path):
    rounds = dataclasses.replace(ROUNDS, threshold=1.0)
    undecided = from_reward(lambda prompts, responses: [0.0 for _ in responses])
    message = (
        r"round 1: no two of 6 samples of any of 4 prompts have win-rates that are threshold = 1 apart "
        r"\(at most 0 are\); lower threshold, or take more samples"
    )
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "none", preference=undecided, rounds=rounds)
    assert not (tmp_path / "none").exists()

    class Tiring(Turning):
        def matrix(self, prompt, responses):
            P = super().matrix(prompt, responses)
            return np.full_like(P, 0.5) if self.second.exists() else P

    result, weights = run(tmp_path, preference=Tiring(tmp_path))
    assert result.stopped.startswith("round 3: no two of 6 samples")
    assert [each["round"] for each in result.rounds] == [0, 1, 2]
    again, same_weights = run(tmp_path, preference=Tiring(tmp_path))
    assert again == result
    same(weights, same_weights)


def test_another_configuration_does_not_take_over_the_folder(tmp_path):
    run(tmp_path, rounds=dataclasses.replace(ROUNDS, count=1))
    with pytest.raises(ValueError, match=r"rounds.threshold: 0.1 there, 0.2 now"):
        run(tmp_path, rounds=dataclasses.replace(ROUNDS, count=1, threshold=0.2))


CYCLE = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]])


def test_selection():
    w = win_rates_among(CYCLE)
    np.testing.assert_allclose(w, [0.55, 0.35, 0.6])
    rounds = partial(Rounds, threshold=0.0)
    assert select(CYCLE, rounds()) == [(2, 1, 1.0)]
    assert select(CYCLE, rounds(pairs="all")) == [(2, 0, 1.0), (2, 1, 1.0), (0, 1, 1.0)]
    assert select(CYCLE, rounds(pairs="all", labels="soft")) == [(2, 0, 0.8), (2, 1, 0.4), (0, 1, 0.9)]
    assert select(CYCLE, Rounds(pairs="all", threshold=0.1)) == [(2, 1, 1.0), (0, 1, 1.0)]
    assert select(CYCLE, Rounds(threshold=0.26)) == []
    ties = np.full((2, 2), 0.5)
    assert select(ties, rounds()) == []
    assert select(ties, rounds(labels="soft")) == [(0, 1, 0.5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count = 0: it must be at least 1"),
        ({"samples": 1}, "samples = 1: it must be at least 2"),
        ({"threshold": 1.5}, r"threshold = 1.5: it must lie in \[0, 1\]"),
        ({"anchor": -0.1}, r"anchor = -0.1: it must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature = 0.0: it must be finite and positive"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Rounds(**options)


def same(weights, others):
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# --- the command ---

CONFIG = """
method: {method}
{options}
preference: reward/model
rounds: {{count: 2, samples: 8, max_new_tokens: 3, validation_samples: 8}}
model: {{name: start/model}}
data: {{train: prompts.jsonl, max_length: 16}}
train: {{output: out, epochs: 10, batch_size: 4, learning_rate: 2e-2}}
"""
SFT = """
method: sft
model: {tiny: {level: character, layers: 1, width: 16, context: 16}}
data: {train: pairs.jsonl}
train: {output: start, max_steps: 1, learning_rate: 1e-6}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A policy, a preference for a over b, and prompts."""
    monkeypatch.chdir(tmp_path)
    pairs = [("a", "b"), ("aa", "ab"), ("ab", "bb"), ("aab", "bba")]
    rows = [{"prompt": x, "chosen": y, "rejected": z} for x in PROMPTS for y, z in pairs]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": x}) + "\n" for x in PROMPTS * 2))
    Path("start.yaml").write_text(SFT)
    train(read_method("start.yaml"))
    settings = ["method=bradley_terry", "train={output: reward, epochs: 10, learning_rate: 1e-2}"]
    train(read_method("start.yaml", settings))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("iterative_dpo", "beta: 0.5"),
        ("iterative_dno_prct", "eta: 2.0"),
        ("iterative_inpo", "eta: 5.0\nbeta: 0.1"),
    ],
)
def test_nashpref_train_runs_rounds(folder, capsys, method, options):
    Path("c.yaml").write_text(CONFIG.format(method=method, options=options))
    assert main(["train", "c.yaml"]) == 0
    out, said = capsys.readouterr()
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    best = max(line["win_rate"] for line in lines)
    assert best > 0.52
    assert out == "wrote out/model\n"
    assert f"win-rate {best:.3f}" in said
    assert AutoModelForCausalLM.from_pretrained("out/model").config.vocab_size > 0
    assert {row["prompt"] for row in pairs_of("out", 1)} <= set(PROMPTS)
    assert main(["train", "c.yaml", "--set", "rounds.count=3"]) == 2
    assert "rounds.count: 2 there, 3 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("iterative_dpo", "beta: -1", "beta = -1.0: it must be finite and positive"),
        ("iterative_dno_prct", "eta: 0", "eta = 0.0: it must be finite and positive"),
        ("iterative_inpo", "eta: 5\nbeta: 1", "eta * beta = 5: it must lie in [0, 1]"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, capsys, method, options, message):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG.format(method=method, options=options))
    assert main(["train", "c.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_choice_is_refused(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    for method, hyper, setting in (
        ("iterative_dno_prct", "eta: 1", "rounds.anchor=0.5"),
        ("iterative_dno_prct", "eta: 1", "rounds.labels=soft"),
        ("iterative_inpo", "eta: 1\nbeta: 0.1", "rounds.threshold=0.5"),
    ):
        path.write_text(CONFIG.format(method=method, options=hyper))
        assert main(["train", str(path), "--set", setting]) == 2
        said = capsys.readouterr().err
        assert "rounds: " in said
        assert ("anchor 0" in said) or ("threshold is not for choice" in said)
