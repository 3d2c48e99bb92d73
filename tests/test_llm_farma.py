"""Rewards of prefixes: losses against their formulas, gradients where they belong, and what is learned."""

import itertools
import json
import tempfile
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from nashpref.llm.batching import LengthBuckets  # noqa: E402
from nashpref.llm.data import Pair  # noqa: E402
from nashpref.llm.decoding import (  # noqa: E402
    FarmaModel,
    FarmaPairs,
    PrefixValueModel,
    PrefixValues,
    Rewarded,
    collate_rewarded,
    consistency,
    encode_prompts,
    guided,
    plausible,
    prefix_pairs,
    prefix_regression,
    proper_prefixes,
    scores_of,
)
from nashpref.llm.encoding import Encoder, Tokens, collate, collate_pairs, encode_pairs  # noqa: E402
from nashpref.llm.losses.rewards import bradley_terry  # noqa: E402
from nashpref.llm.objectives import Demonstrations, PreferencePairs  # noqa: E402
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer  # noqa: E402
from nashpref.llm.preferences import BradleyTerryModel  # noqa: E402
from nashpref.llm.training import TrainConfig, fit  # noqa: E402

TOKENIZER = tiny_tokenizer(["a b c", "x y"])
ENCODER = Encoder(TOKENIZER)
SYMBOLS = ["a", "b", "c"]
IDS = TOKENIZER.convert_tokens_to_ids(SYMBOLS)


def lm(seed=0):
    return tiny_causal_lm(TOKENIZER, layers=1, width=32, kind="gpt2", context=16, seed=seed)


def noisy(kind, seed=0):
    model = kind.from_backbone(lm(seed), TOKENIZER)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def some_pairs():
    rows = [Pair("x", "a b c", "b"), Pair("y x", "c", "a c b a", 0.7), Pair("x", "a", "b b", 0.5)]
    return collate_pairs(encode_pairs(ENCODER, rows), ENCODER.pad_id)


# --- the losses ---


def test_the_losses_are_their_formulas():
    values = torch.tensor([[9.0, 1.0, 2.0, 5.0], [9.0, 3.0, 7.0, 9.0]])
    best = torch.tensor([[9.0, 3.0, 2.5, 8.0], [9.0, 1.0, 7.0, 9.0]])
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    inner = proper_prefixes(Tokens(values.long(), mask.long(), mask))
    assert inner.tolist() == [[False, True, True, False], [False] * 4]
    expected = [0.5 * ((1 - 3) ** 2 + (2 - 2.5) ** 2) / 2, 0.0]
    np.testing.assert_allclose(consistency(values, best, inner), expected)
    rewards = torch.tensor([4.0, 1.0])
    expected = [0.5 * (9 + 4 + 1) / 3, 0.5 * 4]
    np.testing.assert_allclose(prefix_regression(values, rewards, mask), expected)


def test_the_target_of_consistency_has_no_gradient():
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    best = torch.tensor([[3.0, 0.0]], requires_grad=True)
    consistency(values, best, torch.tensor([[True, False]])).sum().backward()
    assert values.grad.tolist() == [[-2.0, 0.0]]
    assert best.grad is None


def test_the_value_of_a_prefix_is_the_heads_output_for_its_last_token():
    model, tokens = noisy(FarmaModel), some_pairs().tokens
    values, best = model.values_and_best(tokens)
    torch.testing.assert_close(values, model.values(tokens))
    states = model.backbone(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    everything = model.head(states)
    torch.testing.assert_close(best, everything.amax(-1), atol=1e-5, rtol=1e-5)
    for row, t in tokens.completion_mask.nonzero().tolist():
        expected = everything[row, t - 1, tokens.input_ids[row, t]]
        assert abs(values[row, t] - expected) < 1e-5
    some = torch.tensor(IDS).expand(*tokens.input_ids.shape, 3)
    torch.testing.assert_close(
        model.values_and_best(tokens, some)[1], everything[..., IDS].amax(-1), atol=1e-5, rtol=1e-5
    )
    assert not best.requires_grad
    assert values.requires_grad


@pytest.mark.parametrize("kind", [FarmaModel, PrefixValueModel])
def test_rewards_are_the_values_of_whole_responses(kind, tmp_path):
    model = noisy(kind)
    prompts, responses = ["x", "y x", "x", "y"] * 6, ["a b", "c", "", "b b a"] * 6
    found = model.rewards(prompts, responses)
    for x, y, r in zip(prompts[:4], responses[:4], found, strict=False):
        tokens = collate([ENCODER.encode(x, y)], ENCODER.pad_id)
        assert abs(model.values(tokens)[0, -1] - r) < 1e-5
    assert found.std() > 0.1
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind.__name__]
    again = kind.from_pretrained(tmp_path)
    torch.testing.assert_close(again.rewards(prompts, responses), found)


def test_plausible_tokens():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]))
    log_p, tokens = plausible(logits, 3, 0.2)
    assert tokens[0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(log_p[0].exp(), [0.5, 0.3, 0.15], rtol=1e-6)
    assert log_p[1].isfinite().tolist() == [True, False, False]
    assert plausible(logits, 9)[1].shape == (2, 4)


# --- the objective ---


def test_the_two_losses_take_turns():
    batch, objective = some_pairs(), FarmaPairs(noisy(FarmaModel))
    values, best = objective.model.values_and_best(batch.tokens)
    inner = proper_prefixes(batch.tokens)
    ends = batch.tokens.attention_mask.sum(1) - 1
    r = values[torch.arange(6), ends]
    L1 = bradley_terry(r[:3], r[3:], p_chosen=batch.p_chosen)
    L2 = consistency(values, best, inner).view(2, 3).mean(0)
    for expected in (L1, L2, L1):
        found = objective(batch)
        torch.testing.assert_close(found["loss"], expected)
        assert found["loss"].requires_grad
        residual = ((values - best).abs() * inner).sum(1) / inner.sum(1)
        torch.testing.assert_close(found["inconsistency"], residual.view(2, 3).mean(0))
        torch.testing.assert_close(found["deviation"], (r - r.mean()).abs().view(2, 3).mean(0))
        assert objective.advance({}) == {}
    assert found["accuracy"].tolist() == [float(r[0] > r[3]), float(r[1] > r[4]), 0.5]
    again = FarmaPairs(objective.model)
    again.load_state(*objective.state())
    torch.testing.assert_close(again(batch)["loss"], L2)


def test_with_a_policy_the_maximum_is_over_what_it_may_say():
    batch, model = some_pairs(), noisy(FarmaModel)
    policy = tiny_causal_lm(TOKENIZER, layers=1, width=32, kind="gpt2", context=16, seed=4)
    with torch.no_grad():
        policy.transformer.wte.weight.mul_(5.0)
    objective = FarmaPairs(model, policy, top_k=4, min_p=0.3)
    objective.advance({})
    tokens = batch.tokens
    probabilities = policy(tokens.input_ids, attention_mask=tokens.attention_mask).logits.softmax(-1)
    allowed = probabilities >= torch.maximum(
        0.3 * probabilities.amax(-1, keepdim=True), probabilities.topk(4).values[..., -1:]
    )
    outputs = model.head(model.backbone(tokens.input_ids, attention_mask=tokens.attention_mask)[0])
    best = outputs.masked_fill(~allowed, -torch.inf).amax(-1)
    expected = consistency(model.values(tokens), best, proper_prefixes(tokens)).view(2, 3).mean(0)
    torch.testing.assert_close(objective(batch)["loss"], expected, atol=1e-5, rtol=1e-5)
    assert 1 < allowed.sum(-1).float().mean() < 4
    assert not any(
        parameter is weight for parameter in objective.parameters() for weight in policy.parameters()
    )


def test_a_run_that_was_cut_off_goes_on_with_the_right_loss(tmp_path):
    rows = encode_pairs(ENCODER, [Pair("x", *pair) for pair in itertools.permutations(["a", "b c", "c"], 2)])

    def train(folder, steps):
        torch.manual_seed(0)
        model = noisy(FarmaModel)
        config = TrainConfig(
            output=str(tmp_path / folder),
            epochs=3,
            batch_size=2,
            learning_rate=1e-2,
            log_every=1,
            save_every=1,
            keep_checkpoints=9,
        )
        batches = LengthBuckets([len(row) for row in rows], 2)
        collator = partial(collate_pairs, pad_id=ENCODER.pad_id)

        def cut(batch):
            if steps is not None and objective.taken == steps:
                raise RuntimeError("pulled the plug")
            return collator(batch)

        objective = FarmaPairs(model)
        with nullcontext() if steps is None else pytest.raises(RuntimeError, match="the plug"):
            fit(objective, rows, batches, cut, config)
        return model.state_dict()

    whole = train("whole", None)
    train("cut", 3)
    again = train("cut", None)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


# --- what is learned ---

PLANS = {
    "a": {"aa": -1.0, "ab": 2.0, "ac": -1.0},
    "b": {"ba": 0.3, "bb": 0.3, "bc": 0.3},
    "c": {"ca": 0.0, "cb": 0.0, "cc": -0.5},
}
REWARDS = {" ".join(word): r for plan in PLANS.values() for word, r in plan.items()}


def minimise(objective, rows, collator, folder, steps, rate=5e-3):
    config = TrainConfig(output=str(folder), max_steps=steps, batch_size=36, learning_rate=rate, log_every=1)
    return fit(objective, rows, LengthBuckets([len(row) for row in rows], 36), collator, config)


@pytest.fixture(scope="module")
def every_pair():
    """All pairs of the nine responses, with their probabilities."""
    words = list(REWARDS)
    pairs = [
        Pair("x", a, b, float(torch.sigmoid(torch.tensor(2.0 * (REWARDS[a] - REWARDS[b])))))
        for a, b in itertools.combinations(words, 2)
    ]
    return encode_pairs(ENCODER, pairs)


@pytest.fixture(scope="module")
def speaker():
    """A policy that has learned to say two of the three symbols and stop."""
    policy = tiny_causal_lm(TOKENIZER, layers=1, width=32, kind="gpt2", context=16, seed=0)
    rows = [ENCODER.encode("x", word) for word in REWARDS] * 4
    with tempfile.TemporaryDirectory() as folder:
        minimise(Demonstrations(policy), rows, partial(collate, pad_id=ENCODER.pad_id), folder, 80)
    return policy


def first_symbols(model):
    """The value of each first symbol, up to a constant."""
    prompts = encode_prompts(ENCODER, ["x"], room=3)
    found = scores_of(model, ENCODER, prompts)(prompts.ids, torch.tensor([IDS]))[0]
    return (found - found.mean()).tolist()


def test_farma_becomes_consistent_and_values_a_prefix_by_its_best_completion(every_pair, speaker, tmp_path):
    model = FarmaModel.from_backbone(lm(), TOKENIZER)
    collator = partial(collate_pairs, pad_id=ENCODER.pad_id)
    log = minimise(FarmaPairs(model, speaker, 3, 0.05), every_pair, collator, tmp_path, 500)
    course = np.array([row["inconsistency"] for row in log if "inconsistency" in row])
    assert course[-20:].mean() < max(course[:20]) / 10.0
    relative = [row["inconsistency"] / row["deviation"] for row in log if "inconsistency" in row]
    assert np.mean(relative[-20:]) < relative[0] / 10.0
    assert log[-2]["accuracy"] > 0.8
    a, b, c = first_symbols(model)
    np.testing.assert_allclose([(a - b) / 2.0, (b - c) / 2.0], [2.0 - 0.3, 0.3], atol=0.35)
    best = guided(
        speaker, ENCODER, ["x"], model, beta=0.01, top_k=3, min_p=0.05, max_new_tokens=3, greedy=True
    )
    assert best == [["a b"]]


def test_l1_alone_leaves_prefixes_without_a_meaning(every_pair, speaker, tmp_path):
    class Alone(FarmaPairs):
        def advance(self, metrics):
            return {}

    model = FarmaModel.from_backbone(lm(), TOKENIZER)
    collator = partial(collate_pairs, pad_id=ENCODER.pad_id)
    log = minimise(Alone(model, speaker, 3, 0.05), every_pair, collator, tmp_path, 120)
    assert log[-2]["accuracy"] > 0.8
    course = [row["inconsistency"] for row in log if "inconsistency" in row]
    assert np.mean(course[-20:]) > 0.7


def test_cd_learns_the_mean_and_pargs_what_wins(every_pair, tmp_path):
    value = PrefixValueModel.from_backbone(lm(), TOKENIZER)
    rows = [Rewarded(ENCODER.encode("x", word), r) for word, r in REWARDS.items()] * 4
    collator = partial(collate_rewarded, pad_id=ENCODER.pad_id)
    minimise(PrefixValues(value), rows, collator, tmp_path / "cd", 160)
    means = [np.mean(list(plan.values())) for plan in PLANS.values()]
    found = first_symbols(value)
    np.testing.assert_allclose(found, np.array(means) - np.mean(means), atol=0.08)
    np.testing.assert_allclose(value.rewards(["x"] * 9, list(REWARDS)), list(REWARDS.values()), atol=0.15)

    model = BradleyTerryModel.from_backbone(lm(), TOKENIZER)
    cut, pairs = prefix_pairs(every_pair), partial(collate_pairs, pad_id=ENCODER.pad_id)
    minimise(PreferencePairs(model), cut, pairs, tmp_path / "pargs", 120)
    a, b, c = first_symbols(model)
    assert b > a + 0.2  # wins against a's average answer more often than not, and against c's
    assert b > c + 0.2
