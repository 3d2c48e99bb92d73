"""Lift conformance: the interpreter for language models, on a table with exact payoffs, is the exact one."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.llm.interpreter import MirrorObjective
from nashpref.llm.policies import Weights
from nashpref.llm.tabular import MarkovSpace, TabularPolicy, TabularSpace

RULES = {
    "mwu": npf.MWU(eta=0.3),
    "gda": npf.GDA(beta=0.1, eta=0.5),
    "gda, decreasing": npf.GDA(beta=0.1),
    "nash-md": npf.NashMD(beta=0.1, eta=0.5),
    "nash-md, decreasing": npf.NashMD(beta=0.1),
    "nash-ema": npf.NashEMA(beta=0.1, eta=0.5, decay=0.6),
    "ogda": npf.OGDA(eta=0.4),
    "ogda, regularised": npf.OGDA(beta=0.1),
    "onpo": npf.ONPO(),
    "egpo": npf.EGPO(beta=0.1),
    "egpo, unregularised": npf.EGPO(beta=0.0, eta=0.7),
    "mmd": npf.MMD(beta=0.1),
    "nash-mp": npf.NashMP(beta=0.1),
    "comal": npf.COMAL(beta=0.2, every=7),
    "mnpo": npf.MNPO(beta=0.1, eta=0.5, weights=(0.5, 0.3, 0.2)),
    "best response": npf.BestResponse(beta=0.2),
}


def game_and_reference(seed, B=3, n=6):
    rng = np.random.default_rng(seed)
    A = rng.uniform(-0.5, 0.5, (B, n, n))
    return npf.MatrixGame(0.5 + (A - A.transpose(0, 2, 1)) / 2), rng.dirichlet(np.ones(n) * 3, B)


def fit_exactly(objective, rounds, record):
    """One gradient step of size n/2 is the minimum of the regression over a whole table."""
    policy = objective.space.policy
    B, n = policy.logits.shape
    while objective.round < rounds:
        losses = objective(range(B))["loss"]
        (gradient,) = torch.autograd.grad(losses.sum(), policy.logits)
        with torch.no_grad():
            policy.logits -= n / 2 * gradient
        before = objective.round
        objective.advance({"loss": 1.0, "displacement": 1.0})
        if objective.round > before:
            record(objective.space.log_policy(objective.policy("current")).exp().numpy())


@pytest.mark.parametrize("name", RULES)
def test_the_iterates_are_those_of_the_exact_core(name):
    rule = RULES[name]
    game, mu = game_and_reference(0)
    trace = npf.solve(game, rule, 50, reference=mu, keep_policies=True)
    objective = MirrorObjective(TabularSpace(TabularPolicy(mu), game), rule)
    iterates = []
    fit_exactly(objective, 50, iterates.append)
    assert len(iterates) == 50
    np.testing.assert_allclose(iterates, trace.policies[1:], rtol=0, atol=1e-12)
    assert np.abs(iterates[-1] - mu).max() > 0.01


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(RULES)))
def test_on_any_game(seed, name):
    game, mu = game_and_reference(seed, B=2, n=4)
    trace = npf.solve(game, RULES[name], 10, reference=mu, keep_policies=True)
    iterates = []
    fit_exactly(MirrorObjective(TabularSpace(TabularPolicy(mu), game), RULES[name]), 10, iterates.append)
    np.testing.assert_allclose(iterates, trace.policies[1:], rtol=0, atol=1e-12)


# --- Markov games ---

MARKOV_RULES = {
    "mtpo": npf.MTPO(beta=0.2, eta=0.5),
    "mtpo, decreasing": npf.MTPO(beta=0.2),
    "mtpo-tau": npf.MTPOTau(beta=0.2, eta=0.5),
    "mpo": npf.MPO(eta=0.3),
    "ompo": npf.OMPO(eta=0.4),
    "ompo, regularised": npf.OMPO(beta=0.1, eta=0.4),
    "gda": npf.GDA(beta=0.1, eta=0.5),
    "egpo": npf.EGPO(beta=0.1, eta=0.4),
}


@pytest.mark.parametrize("every_step", [False, True], ids=["final states", "every step"])
@pytest.mark.parametrize("name", MARKOV_RULES)
def test_the_iterates_on_a_markov_game_are_those_of_the_exact_core(name, every_step):
    check_markov(MARKOV_RULES[name], markov_game(0, every_step), None)


def test_the_iterates_under_the_weighted_divergence_too():
    check_markov(npf.OMPO(eta=0.4), markov_game(1, True), npf.Geometry.WEIGHTED_OCCUPANCY)


def check_markov(rule, game, geometry):
    rng = np.random.default_rng(5)
    mu = rng.dirichlet(np.ones(game.actions) * 3, game.policy_shape[:-1])
    trace = npf.solve(game, rule, 50, reference=mu, keep_policies=True, geometry=geometry)
    table = TabularPolicy(game.flat(mu).reshape(-1, game.actions))
    space = MarkovSpace(table, game, geometry or getattr(rule, "geometry", "occupancy"), rule_beta(rule))
    iterates = []
    fit_exactly(MirrorObjective(space, rule), 50, iterates.append)
    expected = np.stack([game.flat(policy) for policy in trace.policies[1:]])
    found = np.where(game.reached_from[:, :, None], np.reshape(iterates, expected.shape), expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(found[-1] - game.flat(mu)).max() > 0.01


def rule_beta(rule):
    return getattr(rule, "beta", 0.0)


def markov_game(seed, every_step, H=3, S=4, A=3):
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(S) * 0.5, (H, S, A))
    shape = (H, S * A, S * A) if every_step else (S, S)
    noise = rng.uniform(-0.5, 0.5, shape)
    preference = 0.5 + (noise - np.swapaxes(noise, -1, -2)) / 2
    preference = preference.reshape((H, S, A, S, A) if every_step else (S, S))
    return npf.MarkovGame(transition, preference, np.array([0.5, 0.5, 0, 0]))


# --- sampled responses ---


class Recorded(TabularSpace):
    """Keeps what the regression is fitted on."""

    fitted_on = None

    def draw(self, policy, prompts, step, stream, **options):
        draws = super().draw(policy, prompts, step, stream, **options)
        if stream == 0:
            self.fitted_on = draws.responses
        return draws


def fitted(objective, batches):
    """The policy that minimises the regression over so many batches of draws: Newton's one step."""
    policy, K = objective.space.policy, objective.space.count
    B, n = policy.logits.shape
    gradient, hessian = torch.zeros(B, n, dtype=torch.float64), torch.zeros(B, n, n, dtype=torch.float64)
    for k in range(batches):
        objective.taken = k  # the randomness of a draw
        losses = objective(range(B))["loss"]
        gradient += torch.autograd.grad(losses.sum(), policy.logits)[0]
        counts = torch.nn.functional.one_hot(objective.space.fitted_on, n).sum(dim=1).double()
        hessian += 2 / K * (torch.diag_embed(counts) - counts[:, :, None] * counts[:, None] / K)
    step = torch.linalg.lstsq(hessian, gradient[:, :, None]).solution[:, :, 0]
    return torch.softmax(policy.logits.detach() - step, dim=-1).numpy()


@pytest.mark.parametrize(
    ("estimator", "K", "rule"),
    [
        ("regression", 4, npf.OGDA(beta=0.1, eta=0.9)),
        ("regression", 4, npf.NashMD(beta=0.1, eta=0.9)),
        ("on_policy", 2, npf.GDA(beta=0.1, eta=0.9)),  # INPO
        ("on_policy", 5, npf.NashMD(beta=0.1, eta=0.9)),
    ],
)
def test_the_error_falls_with_the_square_root_of_the_samples(estimator, K, rule):
    game, mu = game_and_reference(3, B=12, n=5)
    exact = npf.solve(game, rule, 1, reference=mu).policy
    errors = []
    sizes = [32, 128, 512]
    for batches in sizes:
        space = Recorded(TabularPolicy(mu), game, count=K, seed=7)
        found = fitted(MirrorObjective(space, rule, estimator=estimator), batches)
        errors.append(np.abs(found - exact).sum(axis=1).mean() / 2)
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35, errors
    assert errors[-1] < 0.02


def test_opponents_that_are_spread_over_their_policies_say_more():
    """OGDA's 2 q(π_t) − q(π_{t−1}) from 16 responses of each: no bias, and a fraction of the variance."""
    game, mu = game_and_reference(3, B=12, n=5)
    space = TabularSpace(TabularPolicy(mu), game)
    everything = space.draw(None, range(12), 0, 0)
    space.count = 16
    variance = {}
    for systematic in (True, False):
        objective = MirrorObjective(space, npf.OGDA(beta=0.1), systematic=systematic)
        before = torch.as_tensor(mu).log() + 0.1 * torch.arange(5)
        objective.policies["previous"] = Weights((before,))

        def gains(weights, objective=objective, systematic=systematic):
            step = npf.MirrorStep("current", {"current": 1.0}, weights)
            policy = objective.policy
            return [
                space.gain(step, everything, policy, k, systematic=systematic).numpy() for k in range(400)
            ]

        found = gains({"current": 2.0, "previous": -1.0})
        # Both opponents are drawn with the same numbers: the ratio would be 2 were they independent.
        apart = np.var(gains({"current": 1.0, "previous": -1.0}), axis=0).mean()
        alone = np.var(gains({"current": 1.0}), axis=0).mean()
        assert apart < (1.7 if systematic else 0.7) * alone
        exact = 2 * game.payoff(mu) - game.payoff(torch.softmax(before, dim=1).numpy())
        error = np.mean(found, axis=0) - exact
        assert np.abs(error).max() < 4.5 * np.std(found, axis=0).max() / 20
        variance[systematic] = np.var(found, axis=0).mean()
    assert variance[True] < 0.2 * variance[False]


def test_responses_are_drawn_from_one_opponent_only():
    game, mu = game_and_reference(0)
    space = TabularSpace(TabularPolicy(mu), game)
    with pytest.raises(ValueError, match=r"OGDA plays 2 opponents in one step \(current, previous\)"):
        MirrorObjective(space, npf.OGDA(eta=0.1), estimator="on_policy")


class FixedDraws(TabularSpace):
    """Draws these responses of the network itself, and everything of its opponents."""

    chosen = None

    def draw(self, policy, prompts, step, stream, **options):
        draws = super().draw(policy, prompts, step, stream, **options)
        if policy is None:
            return dataclasses.replace(
                draws, responses=self.chosen, weights=torch.full((1, 2), 0.5, dtype=torch.float64)
            )
        return draws


@pytest.mark.parametrize(
    "rule", [npf.NashMD(beta=0.3, eta=0.5), npf.OGDA(beta=0.3, eta=0.5), npf.BestResponse(beta=0.3)]
)
@pytest.mark.parametrize("taken", [1, 2], ids=["within a round", "where a round begins"])
def test_the_policy_gradient_is_that_of_payoff_less_kl(rule, taken):
    """The expectation over both of two draws, by enumeration, away from the reference."""
    game, mu = game_and_reference(1, B=1, n=4)
    space = FixedDraws(TabularPolicy(mu), game)
    objective = MirrorObjective(space, rule, updates=2, estimator="policy_gradient")
    with torch.no_grad():
        space.policy.logits += torch.tensor([[0.5, -0.3, 0.2, 0.0]])
    for _ in range(taken):
        objective.advance({})
    pi = space.policy().exp()[0]
    expected = torch.zeros(1, 4, dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):
        space.chosen = torch.tensor([[i, j]])
        loss = objective([0])["loss"].sum()
        expected += (pi[i] * pi[j]).detach() * torch.autograd.grad(loss, space.policy.logits)[0]

    step = objective.step
    log_pi = space.policy()
    objective_value = torch.zeros((), dtype=torch.float64)
    for name, g in step.payoffs.items():
        opponent = space.log_policy(objective.policy(name)).exp()[0]
        objective_value = objective_value + g * (log_pi.exp()[0] @ (space.preferences[0] @ opponent - 0.5))
    for name, w in step.anchors.items():
        anchor = space.log_policy(objective.policy(name))
        objective_value = objective_value - w * (log_pi.exp() * (log_pi - anchor)).sum()
    exact = -torch.autograd.grad(objective_value, space.policy.logits)[0]
    torch.testing.assert_close(expected, exact, rtol=0, atol=1e-12)
    assert exact.abs().max() > 0.005
