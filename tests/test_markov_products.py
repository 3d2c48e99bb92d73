"""The products of a Markov game, which go different ways for one vector, a few, and many."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

import nashpref as npf
from nashpref.dynamic_programming import plain_gap, plain_gaps, soft_response
from nashpref.games.markov import BLOCK, FEW

S, A, H = 60, 6, 3
assert (S * A) ** 2 > BLOCK  # payoffs of more than one block
assert S * A * S < BLOCK  # transitions of less


def arrays(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    preference = npf.zoo.random_preferences(S * A, rng, batch=H).preferences
    return rng.dirichlet(np.ones(S), size=(H, S, A)), preference.reshape(H, S, A, S, A)


@pytest.mark.parametrize("starts", [1, 2, FEW, FEW + 1, 9])
@pytest.mark.parametrize("sparse", [False, True])
def test_occupancy_and_payoff_are_the_sums_they_are_written_as(starts: int, sparse: bool) -> None:
    transition, preference = arrays(starts)
    initial = np.where(np.arange(S) < starts, 1.0 / starts, 0.0)
    steps = [csr_array(T.reshape(S * A, S)) for T in transition] if sparse else transition
    game = npf.MarkovGame(steps, preference, initial)
    policy = np.random.default_rng(1).dirichlet(np.ones(A), size=(starts, H, S))
    flat = game.flat(policy)
    plan = game.plan(flat)
    gain = game.payoff(plan)
    for k in range(starts):
        mass = np.eye(S)[k]
        for h, layer in enumerate(game.layers):
            d = mass[:, None] * policy[k, h]
            here = game.reached[h]
            np.testing.assert_allclose(plan[k, layer], d[here], rtol=0, atol=1e-15)
            expected = np.einsum("saxb,xb->sa", preference[h] - 0.5, d)
            np.testing.assert_allclose(gain[k, layer], expected[here], rtol=0, atol=1e-14)
            mass = np.einsum("sa,sax->x", d, transition[h])


@pytest.mark.parametrize("starts", [1, 2, 3])
def test_several_gains_share_a_pass(starts: int) -> None:
    transition = np.random.default_rng(2).dirichlet(np.ones(300), size=(2, 300, 2))  # more than one block
    game = npf.MarkovGame(
        transition, np.full((300, 2, 300, 2), 0.5), np.repeat([1.0 / starts, 0.0], [starts, 300 - starts])
    )
    gains = np.random.default_rng(3).random((5, *game.flat_shape))
    together = plain_gaps(game, *gains)
    np.testing.assert_allclose(together, [plain_gap(game, gain) for gain in gains], rtol=1e-14)
    log_mu = np.log(np.full(game.flat_shape, 0.5))
    hard = [1e-6 * game.initial_weights @ soft_response(game, log_mu, gain / 1e-6)[2] for gain in gains]
    np.testing.assert_allclose(together, 2.0 * np.array(hard), rtol=0, atol=1e-5)
