"""Lift conformance: the interpreter for language models, on a table with exact payoffs, is the exact one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref.llm.interpreter import MirrorObjective
from nashpref.llm.tabular import TabularPolicy, TabularSpace

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
    fit_exactly(
        MirrorObjective(TabularSpace(TabularPolicy(mu), game), RULES[name]), 10, iterates.append
    )
    np.testing.assert_allclose(iterates, trace.policies[1:], rtol=0, atol=1e-12)
