"""Exact tasks: matrices are calls, policies are models, and what is learned from them is right."""

from collections import Counter

import numpy as np
import pytest
import torch

import nashpref as npf
from nashpref.bradley_terry import fit_bradley_terry
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.encoding import Encoder, collate, collate_pairs, encode_demonstrations
from nashpref.llm.environments import (
    INVALID,
    annotator_mixture,
    bradley_terry,
    length_biased,
    rock_paper_scissors_of_styles,
)
from nashpref.llm.logprobs import completion_logps
from nashpref.llm.objectives import Demonstrations, PreferencePairs
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.preferences import GeneralPreferenceModel, PairwisePreferenceModel
from nashpref.llm.training import TrainConfig, fit
from nashpref.transitivity import three_cycles

TASKS = [rock_paper_scissors_of_styles, annotator_mixture, length_biased, bradley_terry]
BETA = 0.05


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rng(seed=0):
    return np.random.default_rng(seed)


def model_of(task, seed=0, **options):
    """A model that knows something: its end and symbols are likelier than other tokens, though unequally."""
    model = tiny_causal_lm(task.tokenizer, layers=1, width=32, seed=seed, **options)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)
    return model


# --- the preference ---


@pytest.mark.parametrize("make", TASKS)
def test_the_matrix_is_the_calls(make):
    task = make(2, 3, 3)
    for prompt in task.prompts:
        said = [*task.responses, "a z b", ""]
        P = task.matrix(prompt, said)
        i, j = np.indices(P.shape).reshape(2, -1)
        calls = task([prompt] * len(i), [said[k] for k in i], [said[k] for k in j])
        assert calls.dtype == torch.float64
        np.testing.assert_array_equal(P[i, j], calls.numpy())
        np.testing.assert_array_equal(P + P.T, np.ones_like(P))
        few = [5, 0, 11]
        np.testing.assert_array_equal(task.matrix(prompt, [said[k] for k in few]), P[np.ix_(few, few)])


@pytest.mark.parametrize("make", TASKS)
def test_calls_may_mix_prompts(make):
    task = make(3, 4, 2)
    x = rng().integers(0, 3, 40)
    a, b = (rng(s).choice(task.responses, 40).tolist() for s in (1, 2))
    together = task([task.prompts[k] for k in x], a, b)
    alone = [float(task([task.prompts[k]], [y], [z])[0]) for k, y, z in zip(x, a, b, strict=True)]
    np.testing.assert_array_equal(together.numpy(), alone)


def test_every_response_is_there_once():
    task = rock_paper_scissors_of_styles(1, 3, 3)
    assert (task.count, len(set(task.responses))) == (27, 27)
    assert task.responses[:4] == ("a a a", "a a b", "a a c", "a b a")
    task = length_biased(1, 3, 3)
    assert (task.count, len(set(task.responses))) == (39, 39)
    assert Counter(len(y.split()) for y in task.responses) == {1: 3, 2: 9, 3: 27}


def test_the_logit_is_the_one_that_is_stated():
    """By hand, from complex numbers and from rewards."""
    task = rock_paper_scissors_of_styles(1, 3, 2, strength=3.0)
    styles, order = [], np.random.default_rng(0)
    for _ in range(2):
        styles.append(np.array([0, *order.permutation([1, 2])]))
    angle = 2 * np.pi * (np.array(styles) / 3 + 0.05 * order.standard_normal((1, 2, 3))[0])
    a, b = [0, 1], [2, 2]
    z_a, z_b = (
        np.array([(np.exp(1j * plane[y[0]]) + 0.8 * np.exp(1j * plane[y[1]])) / 1.8 for plane in angle])
        for y in (a, b)
    )
    cross = (z_a.conj() * z_b).imag
    assert float(task(["question 0"], ["a b"], ["c c"])[0]) == pytest.approx(
        1 / (1 + np.exp(-3.0 * cross[0] - 1.5 * cross[1])), abs=1e-14
    )
    longer, same = (length_biased(1, 3, 3, bias=bias) for bias in (1.25, 0.0))
    logits = [float(torch.logit(t(["question 0"], ["a b c"], ["b"])[0])) for t in (longer, same)]
    assert logits[0] - logits[1] == pytest.approx(2.5, abs=1e-12)
    P = bradley_terry(1, 4, 2).game(invalid=False).preferences[0]
    logit = np.log(P / P.T)
    np.testing.assert_allclose(logit, logit[:, :1] - logit[None, :, 0].reshape(1, -1), atol=1e-10)
    mixed = annotator_mixture(1, 3, 2, weights=(0.5, 0.3, 0.2)).game().preferences[0]
    ones = [annotator_mixture(1, 3, 2, weights=np.eye(3)[m]).game().preferences[0] for m in range(3)]
    np.testing.assert_allclose(mixed, np.tensordot([0.5, 0.3, 0.2], ones, 1), atol=1e-15)


@pytest.mark.parametrize(
    ("make", "cyclic"),
    [
        (rock_paper_scissors_of_styles, 0.05),
        (annotator_mixture, 0.05),
        (length_biased, 0.05),
        (bradley_terry, 0),
    ],
)
def test_cycles(make, cyclic):
    shares = [three_cycles(npf.MatrixGame(P)).share for P in make(4, 3, 3).game(invalid=False).preferences]
    assert min(shares) > cyclic if cyclic else max(shares) == 0.0


@pytest.mark.parametrize("make", TASKS)
def test_prompts_matter(make):
    """What is best for one prompt is not for another."""
    task = make(3, 3, 3)
    eq = npf.equilibrium(task.game()).policy
    for k in range(3):
        for other in {0, 1, 2} - {k}:
            moved = np.broadcast_to(eq[other], eq.shape)
            assert task.gap(moved)[k] > 1e-3
    assert (eq.max(axis=1) > 2.0 / task.count).all()  # and no equilibrium is uniform
    np.testing.assert_array_equal(task.game().preferences, make(3, 3, 3).game().preferences)
    assert (task.game().preferences != make(3, 3, 3, seed=1).game().preferences).any()


# --- the gap ---


@pytest.mark.parametrize("make", TASKS)
def test_the_gap_is_that_of_the_game(make):
    task = make(3, 3, 3)
    game = task.game()
    assert (game.n, game.labels[-1]) == (task.count + 1, INVALID)
    assert (game.preferences[:, :-1, -1] == 1.0).all()
    policy = rng().dirichlet(np.ones(task.count + 1), 3)
    reference = rng(1).dirichlet(np.ones(task.count + 1), 3)
    np.testing.assert_allclose(task.payoff(policy), game.payoff(policy), atol=1e-14)
    np.testing.assert_allclose(task.gap(policy), npf.duality_gap(game, policy), atol=1e-14)
    np.testing.assert_allclose(
        task.gap(policy, BETA, reference), npf.duality_gap(game, policy, BETA, reference), atol=1e-13
    )
    assert task.gap(npf.equilibrium(game).policy).max() < 1e-9
    eq = npf.equilibrium(game, BETA, reference).policy
    assert task.gap(eq, BETA, reference).max() < 1e-9
    assert task.gap(np.full(task.count, 1 / task.count)).min() > 0.05
    leaky = 0.9 * np.pad(npf.equilibrium(game).policy[:, :-1], ((0, 0), (0, 1)))
    leaky[:, -1] = 0.1
    np.testing.assert_allclose(task.gap(leaky), 0.1, atol=0.01)  # the leak's price: 2 · 0.1 · (1 − 1/2)


def test_the_reference_starts_far_from_equilibrium():
    task = rock_paper_scissors_of_styles()
    assert task.count == 81
    gap = task.gap(task.reference, BETA, task.reference)
    assert gap.shape == (8,)
    assert 0.38 < gap.mean() < 0.44
    assert gap.min() > 0.1


# --- a model ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("make", TASKS)
def test_the_policy_is_the_models(make, kind):
    task = make(2, 3, 3)
    model, encoder = model_of(task, kind=kind).train(), Encoder(task.tokenizer)
    policy = task.policy(model, temperature=1.3)
    assert model.training
    assert policy.shape == (2, task.count + 1)
    np.testing.assert_allclose(policy.sum(axis=1), 1.0, atol=1e-12)
    assert (policy[:, -1] < 0.9999999).all()
    model.eval()
    for prompt, row in zip(task.prompts, policy, strict=True):
        tokens = collate([encoder.encode(prompt, y) for y in task.responses], encoder.pad_id)
        assert tokens.completion_mask.sum(dim=1).max() == task.max_new_tokens
        with torch.no_grad():
            expected = completion_logps(model, tokens, temperature=1.3).double().exp()
        np.testing.assert_allclose(row[:-1], expected.numpy(), rtol=1e-4)


def test_the_gap_of_a_model_and_of_its_probabilities():
    task = annotator_mixture(2, 3, 2)
    model, reference = model_of(task), model_of(task, seed=1)
    np.testing.assert_array_equal(task.gap(model), task.gap(task.policy(model)))
    np.testing.assert_array_equal(
        task.gap(model, BETA, reference), task.gap(task.policy(model), BETA, task.policy(reference))
    )
    assert task.gap(model, BETA, model).min() > 0.0


def test_the_leak_is_accurate_where_it_is_tiny():
    """With an enormous head, all but 1e-20 of the mass is on one response."""
    task = rock_paper_scissors_of_styles(1, 3, 2)
    model, ids = tiny_causal_lm(task.tokenizer, layers=1, width=16, kind="gpt2"), task.tokenizer
    allowed = [ids.eos_token_id, *ids.convert_tokens_to_ids(list(task.alphabet))]
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        weight = torch.zeros_like(model.lm_head.weight)
        weight[:, 0] = -20.0
        weight[allowed, 0] = 0.0
        model.lm_head.weight.copy_(weight)
    policy = task.policy(model)[0]
    # Of 4 equally likely tokens: two symbols, then the end; early and late ends leave the tree.
    np.testing.assert_allclose(policy[:-1], 1 / 64, rtol=1e-6)
    assert policy[-1] == pytest.approx(1 - 9 / 64, rel=1e-6)


# --- data ---


@pytest.mark.parametrize("make", TASKS)
def test_demonstrations_are_drawn_from_the_reference(make):
    task = make(2, 3, 2)
    assert (task.reference > 0.0).all()
    np.testing.assert_allclose(task.reference.sum(axis=1), 1.0, atol=1e-12)
    drawn = task.demonstrations(rng(), 40_000)
    for prompt, mu in zip(task.prompts, task.reference, strict=True):
        counts = Counter(d.completion for d in drawn if d.prompt == prompt)
        n = sum(counts.values())
        assert n == 20_000
        z = (np.array([counts[y] for y in task.responses]) - n * mu) / np.sqrt(n * mu * (1 - mu))
        assert np.abs(z).max() < 4.5
    assert drawn[:100] == task.demonstrations(rng(), 40_000)[:100]


def test_pairs_are_judged_by_the_preference():
    task = rock_paper_scissors_of_styles(2, 3, 2)
    soft = task.pairs(rng(), 3000, soft=True)
    assert [pair.prompt for pair in soft[:3]] == ["question 0", "question 1", "question 0"]
    p = task([s.prompt for s in soft], [s.chosen for s in soft], [s.rejected for s in soft])
    assert [s.p_chosen for s in soft] == p.tolist()
    first = Counter(s.chosen for s in soft)
    assert set(first) == set(task.responses)
    assert max(first.values()) < 3000 / 9 + 4.5 * np.sqrt(3000 / 9)

    hard = task.pairs(rng(), 3000)
    assert {pair.p_chosen for pair in hard} == {1.0}
    won = [(h.chosen, h.rejected) == (s.chosen, s.rejected) for h, s in zip(hard, soft, strict=True)]
    spread = np.sqrt(sum(s.p_chosen * (1 - s.p_chosen) for s in soft if s.chosen != s.rejected))
    same = sum(s.chosen == s.rejected for s in soft)
    expected = same + sum(s.p_chosen for s in soft if s.chosen != s.rejected)
    assert abs(sum(won) - expected) < 4.5 * spread
    assert hard == task.pairs(rng(), 3000)


def test_pairs_of_a_policy():
    task = length_biased(2, 3, 2)
    policy = np.zeros((2, 13))
    policy[0, [1, 7, 12]], policy[1, [0, 3]] = (0.25, 0.25, 0.5), (0.9, 0.1)  # half of the first is a leak
    drawn = task.pairs(rng(), 4000, policy, soft=True)
    for k, expected in enumerate(({1: 0.5, 7: 0.5}, {0: 0.9, 3: 0.1})):
        texts = [y for pair in drawn if pair.prompt == task.prompts[k] for y in (pair.chosen, pair.rejected)]
        counts = Counter(texts)
        assert set(counts) == {task.responses[i] for i in expected}
        for i, share in expected.items():
            assert counts[task.responses[i]] / 4000 == pytest.approx(share, abs=0.04)
    model = model_of(task)
    assert len(task.pairs(rng(), 10, model)) == 10


# --- scale ---


def test_ten_thousand_responses():
    task = rock_paper_scissors_of_styles(1, 10, 4)
    policy = task.policy(tiny_causal_lm(task.tokenizer, layers=1, width=16))
    assert policy.shape == (1, 10_001)
    np.testing.assert_allclose(policy.sum(), 1.0, atol=1e-12)
    p = task(["question 0"] * 10_000, ["a b c d"] * 10_000, task.responses).numpy()
    q = task.payoff(task.reference)[0, task.responses.index("a b c d")]
    assert q == pytest.approx((p - 0.5) @ task.reference[0], abs=1e-12)
    with pytest.raises(ValueError, match=r"10000 responses, limit = 2048: .* 2.4 GB"):
        task.game()


def test_beyond_enumeration():
    task = annotator_mixture(2, 26, 20)
    assert task.count == 26**20
    pairs = task.pairs(rng(), 50, soft=True)
    p = task(["question 1"] * 50, [q.chosen for q in pairs], [q.rejected for q in pairs])
    back = task(["question 1"] * 50, [q.rejected for q in pairs], [q.chosen for q in pairs])
    assert (p + back == 1.0).all()
    assert len(set(p.tolist())) == 50
    assert all(len(d.completion.split()) == 20 for d in task.demonstrations(rng(), 10))
    assert task.matrix("question 0", [q.chosen for q in pairs]).shape == (50, 50)
    model = tiny_causal_lm(task.tokenizer, layers=1, width=16)
    with pytest.raises(ValueError, match=f"{26**20} responses, limit = 2048"):
        task.game()
    for ask in (lambda: task.responses, lambda: task.policy(model), lambda: task.reference):
        with pytest.raises(ValueError, match=f"{26**20} responses are too many to enumerate"):
            ask()


# --- errors ---


def test_errors():
    task = rock_paper_scissors_of_styles(2, 3, 2)
    for ask, why in (
        (lambda: task(["what"], ["a b"], ["b a"]), "'what' is no prompt of this task"),
        (lambda: task.matrix([{"role": "user", "content": "question 0"}], ["a b"]), "is no prompt"),
        (lambda: task(["question 0"], [[{"role": "assistant", "content": "a"}]], ["b a"]), "is no text"),
        (lambda: task(["question 0"], ["a b"], []), "1 prompts, 1 and 0 responses"),
        (lambda: task.gap(task.reference, BETA), "needs reference="),
        (lambda: task.gap(task.reference, -1.0), "beta = -1"),
        (lambda: task.gap(model_of(task), BETA, task.reference), "never says '<invalid>' to 'question 0'"),
        (lambda: task.gap(np.ones(9)), "policy"),
        (lambda: task.gap(task.reference, BETA, np.ones(9)), "reference"),
        (lambda: task.pairs(rng(), 4, np.eye(10)[[9, 9]]), "no valid response to 'question 0'"),
        (lambda: task.policy(model_of(rock_paper_scissors_of_styles(1, 3, 2))), "knows 12 tokens, .* 13"),
        (lambda: task.policy(model_of(task), temperature=0.0), "temperature = 0"),
        (lambda: rock_paper_scissors_of_styles(symbols=2), "symbols = 2"),
        (lambda: length_biased(symbols=27), "symbols = 27"),
        (lambda: bradley_terry(prompts=0), "prompts = 0"),
        (lambda: annotator_mixture(length=0), "length = 0"),
        (lambda: bradley_terry(strength=0.0), "strength = 0"),
        (lambda: annotator_mixture(weights=(0.5, 0.4)), "weights = "),
    ):
        with pytest.raises(ValueError, match=why):
            ask()


@pytest.mark.parametrize("said", ["a b c", "a", "", "a z", "a  <eos>", "A b"])
def test_what_is_no_response_loses(said):
    task = rock_paper_scissors_of_styles(1, 3, 2)
    p = task(["question 0"] * 3, [said, "b b", said], ["b b", said, "z"])
    assert p.tolist() == [0.0, 1.0, 0.5]
    assert task.matrix("question 0", [" a   b\n", "a b"])[0, 1] == 0.5


# --- learning ---


def trained(model, task, folder, count, **options):
    pairs = model.encode_all(task.pairs(rng(), count, soft=True))
    config = TrainConfig(
        output=str(folder), **{"batch_size": 64, "schedule": "cosine", "log_every": 50, **options}
    )
    batches = LengthBuckets([len(pair) for pair in pairs], config.batch_size)
    fit(PreferencePairs(model), pairs, batches, lambda p: collate_pairs(p, model.encoder.pad_id), config)
    return model.eval()


def errors(model, task):
    """Strict pairs (|P − 1/2| > 0.02) on the wrong side, and the mean of |p̂ − P| over all pairs i ≠ j."""
    P = np.stack([task.matrix(prompt, task.responses) for prompt in task.prompts])
    learned = np.stack([model.matrix(prompt, task.responses) for prompt in task.prompts])
    strict, off = np.abs(P - 0.5) > 0.02, ~np.eye(task.count, dtype=bool)
    wrong = (np.sign(learned - 0.5) != np.sign(P - 0.5)) & strict
    return int(wrong.sum()), float(np.abs(learned - P)[:, off].mean())


@pytest.mark.parametrize(
    ("kind", "steps", "rate"),
    [(GeneralPreferenceModel, 600, 3e-3), (PairwisePreferenceModel, 800, 2e-3)],
    ids=["general", "pairwise"],
)
def test_a_cyclic_preference_is_learned(kind, steps, rate, tmp_path):
    cyclic = rock_paper_scissors_of_styles(1, 3, 3, strength=2.5)
    backbone = tiny_causal_lm(cyclic.tokenizer, layers=1, width=64)
    with torch.no_grad():
        for weight in backbone.parameters():
            if weight.ndim == 2:
                weight.mul_(4.0)  # the usual initialisation is for wide models
    torch.manual_seed(0)  # of the head
    model = kind.from_backbone(backbone, cyclic.tokenizer)
    wrong, error = errors(model, cyclic)
    assert wrong > 200
    assert error > 0.1
    model = trained(model, cyclic, tmp_path, 4000, max_steps=steps, warmup_steps=20, learning_rate=rate)
    wrong, error = errors(model, cyclic)
    assert wrong == 0
    assert error <= 0.02


@pytest.mark.parametrize("strength", [1.5, 2.5])
def test_bradley_terry_cannot_learn_it(strength):
    """The best fit gets strict pairs wrong, and so do all rewards: they would have to rank a cycle."""
    cyclic = rock_paper_scissors_of_styles(1, 3, 3, strength=strength)
    P = cyclic.matrix("question 0", cyclic.responses)
    scores = fit_bradley_terry(P).scores
    fitted = 1 / (1 + np.exp(scores[None] - scores[:, None]))
    off = ~np.eye(27, dtype=bool)
    assert np.count_nonzero(((fitted - 0.5) * (P - 0.5) < 0) & (np.abs(P - 0.5) > 0.02)) >= 40
    assert np.abs(fitted - P)[off].mean() > 0.05
    strongest = three_cycles(npf.MatrixGame(P)).strongest[0]
    assert strongest.strength > 0.02
    i, j, k = strongest.responses
    assert min(P[i, j], P[j, k], P[k, i]) > 0.52  # r_i > r_j > r_k > r_i has no solution


def test_fine_tuning_reaches_the_reference(tmp_path):
    """From demonstrations to a model whose regularised gap is the one that is stated; few steps suffice."""
    task = rock_paper_scissors_of_styles(2, 3, 3)
    model, encoder = tiny_causal_lm(task.tokenizer, layers=1, width=32), Encoder(task.tokenizer)
    rows = encode_demonstrations(encoder, task.demonstrations(rng(), 2000))
    config = TrainConfig(output=str(tmp_path), max_steps=150, batch_size=64, learning_rate=1e-2)
    batches = LengthBuckets([len(row) for row in rows], 64)
    fit(Demonstrations(model), rows, batches, lambda b: collate(b, encoder.pad_id), config)
    policy = task.policy(model)
    assert policy[:, -1].max() < 0.01
    assert 0.5 * np.abs(policy[:, :-1] - task.reference).sum(axis=1).max() < 0.15
    expected = task.gap(task.reference, BETA, task.reference)
    np.testing.assert_allclose(task.gap(model, BETA, model), expected, atol=0.06)
