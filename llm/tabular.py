"""A table of logits as the network: what the interpreter for language models does, without a language model.

With every response listed and exact payoffs a fit has its minimum after one gradient step, and the
interpreter is then the exact one, to rounding; with sampled responses only their number is in the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nashpref import MatrixGame
from nashpref.llm.interpreter import Draws
from nashpref.llm.policies import Blend, Policy, Store, Weights
from nashpref.policies import FloatArray


class TabularPolicy(nn.Module):
    """`π(y|x) = softmax(logits[x])_y` for B prompts with n responses each.

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


class TabularSpace:
    """Responses are indices, prompts are games of a batch, and payoffs are exact.

    Args:
        policy: the network.
        game: a batch of B games of n responses.
        count: responses drawn for each prompt; None: every response once, weighted by its probability.
        seed: of what is drawn.
    """

    def __init__(
        self, policy: TabularPolicy, game: MatrixGame, *, count: int | None = None, seed: int = 0
    ) -> None:
        self.policy, self.count, self.seed = policy, count, seed
        self.preferences = torch.tensor(game.preferences).reshape(-1, *game.preferences.shape[-2:])
        if self.preferences.shape[:2] != policy.logits.shape:
            raise ValueError(
                f"the policy is {tuple(policy.logits.shape)}, the games {tuple(self.preferences.shape)}"
            )
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

    def win_rates(self, draws: Draws, opponent: Draws) -> Tensor:
        """Looked up."""
        P = self.preferences[list(draws.prompts)]
        rows = P.gather(1, draws.responses[:, :, None].expand(-1, -1, P.shape[2]))
        return rows.gather(2, opponent.responses[:, None, :].expand(-1, rows.shape[1], -1))

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
