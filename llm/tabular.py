"""A table of logits as the network: what the interpreter for language models does, without a language model.

With every response listed and exact payoffs a fit has its minimum after one gradient step, and the
interpreter is then the exact one, to rounding, on matrix games as on Markov games; with sampled responses
only their number is in the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nashpref import MarkovGame, MatrixGame
from nashpref.dynamic_programming import action_values, backward_pass
from nashpref.llm.interpreter import OPPONENTS, Draws, payoffs
from nashpref.llm.policies import Blend, Policy, Store, Weights
from nashpref.mirror import Geometry, MirrorStep
from nashpref.policies import FloatArray


class TabularPolicy(nn.Module):
    """`π(y|x) = softmax(logits[x])_y` for B prompts, or places of a Markov game, with n responses each.

    Args:
        policy: where it starts, `(B, n)`, positive.
    """

    def __init__(self, policy: FloatArray) -> None:
        super().__init__()
        start = torch.as_tensor(policy, dtype=torch.float64)
        if start.ndim != 2 or not (start > 0.0).all():
            raise ValueError(f"policy: positive probabilities (B, n) are needed, not {tuple(start.shape)}")
        self.logits = nn.Parameter(start.log())

    def forward(self) -> Tensor:
        """`log π`, `(B, n)`."""
        return torch.log_softmax(self.logits, dim=-1)


class Table:
    """Rows of logits as the policies of a space: what `TabularSpace` and `MarkovSpace` share.

    Args:
        policy: the network.
        count: responses drawn for each prompt; None: every response once, weighted by its probability.
        seed: of what is drawn.
    """

    def __init__(self, policy: TabularPolicy, count: int | None = None, seed: int = 0) -> None:
        self.policy, self.count, self.seed = policy, count, seed
        self.store = Store(policy)

    def draw(
        self,
        policy: Policy | None,
        prompts: Sequence[int],
        step: int,
        stream: int,
        *,
        systematic: bool = False,
    ) -> Draws:
        """All responses with their probabilities, or `count` drawn ones."""
        p = self.log_policy(policy)[list(prompts)].detach().exp()
        if self.count is None:
            return Draws(prompts, torch.arange(p.shape[1]).expand_as(p), p)
        generator = torch.Generator().manual_seed(hash((self.seed, step, stream)) % 2**63)
        shape = (len(p), 1 if systematic else self.count)
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
        if systematic:
            uniform = (torch.arange(self.count) + uniform) / self.count
        indices = torch.searchsorted(p.cumsum(dim=1), uniform, right=True).clamp(max=p.shape[1] - 1)
        return Draws(prompts, indices, torch.full(indices.shape, 1.0 / self.count, dtype=p.dtype))

    def logps(self, policy: Weights | None, draws: Draws) -> Tensor:
        """Looked up."""
        return self.log_policy(policy)[list(draws.prompts)].gather(1, draws.responses)

    def some(self, draws: Draws, columns: Tensor) -> Draws:
        """Those columns."""
        weights = torch.full(columns.shape, 1.0 / columns.shape[1], dtype=draws.weights.dtype)
        return Draws(draws.prompts, draws.responses.gather(1, columns), weights)

    def log_policy(self, policy: Policy | None) -> Tensor:
        """`log π`, `(B, n)`; a mixture is that of whole responses."""
        if isinstance(policy, Blend):
            total = sum(weight * self.log_policy(part) for part, weight in policy.parts)
            assert isinstance(total, Tensor)
            return torch.log_softmax(total, dim=-1)
        if policy is None:
            return self.policy()  # type: ignore[no-any-return]
        with self.store.loaded(policy):
            return self.policy().detach()  # type: ignore[no-any-return]


class TabularSpace(Table):
    """Responses are indices, prompts are games of a batch, and payoffs are exact.

    Args:
        policy, count, seed: see `Table`.
        game: a batch of B games of n responses.
    """

    def __init__(
        self, policy: TabularPolicy, game: MatrixGame, *, count: int | None = None, seed: int = 0
    ) -> None:
        super().__init__(policy, count, seed)
        self.preferences = torch.tensor(game.preferences).reshape(-1, *game.preferences.shape[-2:])
        if self.preferences.shape[:2] != policy.logits.shape:
            raise ValueError(
                f"the policy is {tuple(policy.logits.shape)}, the games {tuple(self.preferences.shape)}"
            )

    def gain(
        self,
        step: MirrorStep,
        draws: Draws,
        policy: Callable[[str], Policy],
        at: int,
        *,
        systematic: bool = False,
        drawn: Mapping[str, Draws] | None = None,
    ) -> Tensor:
        """Mean payoffs against the opponents."""

        def draw(opponent: Policy) -> Draws:
            return self.draw(opponent, draws.prompts, at, OPPONENTS, systematic=systematic)

        return payoffs(self._win_rates, draw, step, draws, policy, drawn)

    def _win_rates(self, draws: Draws, opponent: Draws) -> Tensor:
        P = self.preferences[list(draws.prompts)]
        rows = P.gather(1, draws.responses[:, :, None].expand(-1, -1, P.shape[2]))
        return rows.gather(2, opponent.responses[:, None, :].expand(-1, rows.shape[1], -1))


class MarkovSpace(Table):
    """Prompts are the places of a Markov game, responses its actions, and action values are exact.

    Args:
        policy: a row for each place, `(S₁ N, A)`; see `Table`.
        game: the game.
        geometry, beta: what a mirror step moves, and the rule's β, as in `nashpref.solve`.
    """

    def __init__(
        self, policy: TabularPolicy, game: MarkovGame, geometry: Geometry, beta: float = 0.0
    ) -> None:
        super().__init__(policy)
        S1, N, A = game.flat_shape
        if policy.logits.shape != (S1 * N, A):
            raise ValueError(f"the policy is {tuple(policy.logits.shape)}, the game needs {(S1 * N, A)}")
        self.game, self.geometry, self.beta = game, geometry, beta

    def gain(
        self,
        step: MirrorStep,
        draws: Draws,
        policy: Callable[[str], Policy],
        at: int,
        *,
        systematic: bool = False,
        drawn: Mapping[str, Draws] | None = None,
    ) -> Tensor:
        """Action values: of each opponent's own play per state, or on occupancies the soft ones."""
        game = self.game

        def log_pi(name: str) -> FloatArray:
            return self.log_policy(policy(name)).numpy().reshape(game.flat_shape)

        def payoff(name: str) -> FloatArray:
            return game.payoff(game.plan(np.exp(log_pi(name))))

        if self.geometry is Geometry.PER_STATE:
            values = np.zeros(game.flat_shape)
            for name, g in step.payoffs.items():
                pi, log_ratio = np.exp(log_pi(name)), log_pi(name) - log_pi("reference")
                values += g * action_values(game, pi, payoff(name), self.beta * np.vecdot(pi, log_ratio))
        else:
            prior = np.sum([weight * log_pi(name) for name, weight in step.anchors.items()], axis=0)
            values = self._soft_values(
                prior, np.sum([g * payoff(j) for j, g in step.payoffs.items()], axis=0)
            )
        return torch.from_numpy(values).flatten(0, 1)[list(draws.prompts)].gather(1, draws.responses)

    def _soft_values(self, log_prior: FloatArray, gain: FloatArray) -> FloatArray:
        """`Q_h = gain_h + f V_{h+1}`, `V_h(s) = c_h log Σ_a exp(log_prior + Q_h/c_h)`; Q/c, `(S₁, N, A)`."""
        values = np.empty_like(log_prior)
        weighted = self.geometry is Geometry.WEIGHTED_OCCUPANCY

        def backup(h: int, q: FloatArray) -> FloatArray:
            layer, c = self.game.layers[h], float(self.game.horizon - h) if weighted else 1.0
            values[:, layer] = q / c
            return np.asarray(c * np.logaddexp.reduce(log_prior[:, layer] + q / c, axis=-1))

        backward_pass(self.game, gain, backup)
        return values
