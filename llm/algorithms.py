"""RLHF, an algorithm at a time: what each takes for the advantage of a response, or of a token, and its loss.

All maximise `E_π[r(x, y)] − β KL(π‖μ)`, and differ in four things only:

| | actions are | advantage | tokens are | KL |
|---|---|---|---|---|
| `REINFORCE` | responses | r less the average so far | summed | in the reward |
| `RLOO` | responses | r less the others' mean | summed | in the reward |
| `ReMax` | responses | r less the likeliest response's | summed | in the reward |
| `GRPO` | tokens | (r − mean)/std in the group | averaged | k3 in the loss |
| `DrGRPO` | tokens | r − mean in the group | divided by a constant | k3 in the loss |
| `PPO` | tokens | GAE from a learned value | summed | in the reward |
| `Kimi` | responses | a regression on r | summed | in the reward |

Where the KL goes can be chosen; see `nashpref.llm.losses.policy_gradient.kl_estimate` for what comes of it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nashpref.llm.losses.common import Label, positive
from nashpref.llm.losses.policy_gradient import (
    AdaptiveKL,
    baseline_advantages,
    clip_range,
    clipped_surrogate,
    clipped_value_loss,
    dr_grpo_advantages,
    gae,
    grpo_advantages,
    kimi,
    kl_estimate,
    over_tokens,
    rloo_advantages,
    token_rewards,
)

KL = Literal["reward", "k2", "k3"]


@dataclass(frozen=True, eq=False)
class Experience:
    """What is known of K responses to each of B prompts, N = B·K rows, when they have been drawn.

    Attributes:
        rewards: r(x, y), `(B, K)`.
        old: `log π_old` of the tokens of the responses, `(N, T)`, 0 elsewhere.
        reference: log μ, likewise.
        mask: 1 at these tokens, `(N, T)`.
        beta: β when they were drawn.
        longest: tokens that a response may have.
        average: mean over earlier batches of what `Algorithm.rewards` gives; None where there are none.
        greedy: reward of the policy's likeliest response, `(B,)`, for an algorithm that asks for it.
        values: V at each token, of the policy that drew, `(N, T)`; for PPO.
    """

    rewards: Tensor
    old: Tensor
    reference: Tensor
    mask: Tensor
    beta: float
    longest: int
    average: float | None = None
    greedy: Tensor | None = None
    values: Tensor | None = None

    @property
    def kl(self) -> Tensor:
        """`log π_old(y) − log μ(y)` of whole responses, `(B, K)`: k1."""
        return over_tokens(self.old - self.reference, self.mask).view(self.rewards.shape)

    def whole(self) -> Experience:
        """The same with responses for tokens: T = 1."""
        old, reference = (over_tokens(each, self.mask)[:, None] for each in (self.old, self.reference))
        return dataclasses.replace(self, old=old, reference=reference, mask=torch.ones_like(self.mask[:, :1]))


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC):
    """What the algorithms share.

    Attributes:
        beta: β ≥ 0, the weight of `KL(π‖μ)`, or how it is adapted.
        kl: "reward": −β(log π_old − log μ) is added to the reward; "k2", "k3": β times this estimator is
            added to the loss, of tokens or of responses as the rest of it.

    Raises:
        ValueError: numbers out of range; k1 in the loss, whose gradient has mean zero.
    """

    beta: float | AdaptiveKL
    kl: KL = "reward"

    by_token: ClassVar[bool] = False
    asks_greedy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        beta = self.beta
        if not isinstance(beta, AdaptiveKL) and not (math.isfinite(beta) and beta >= 0.0):
            raise ValueError(f"beta = {beta}: it must be finite and not negative, or an AdaptiveKL")
        if self.kl not in ("reward", "k2", "k3"):
            why = ": the gradient of k1 in the loss has mean zero" if str(self.kl) == "k1" else ""
            raise ValueError(f"kl = {self.kl!r}{why}; choose 'reward', 'k2' or 'k3'")

    def rewards(self, experience: Experience) -> Tensor:
        """The rewards of whole responses, `(B, K)`, less β k1 where the KL is in the reward."""
        e = experience
        return e.rewards - e.beta * e.kl if self.kl == "reward" else e.rewards

    def loss(self, logps: Tensor, experience: Experience) -> Tensor:
        """The loss of each response.

        Args:
            logps: log π of the tokens as in `Experience`, with gradient, `(N, T)`.
            experience: what is known.

        Returns:
            `(N,)`.
        """
        e = experience
        if not self.by_token:
            logps, e = over_tokens(logps, e.mask)[:, None], e.whole()
        loss = self.policy_loss(logps, e)
        if self.kl != "reward":
            loss = loss + e.beta * kl_estimate(logps, e.reference, self.kl)
        return over_tokens(loss, e.mask, self.length(e))

    @abstractmethod
    def policy_loss(self, logps: Tensor, experience: Experience) -> Tensor:
        """What maximises the reward, of each token or with T = 1 of each response, `(N, T)`."""

    def length(self, experience: Experience) -> Label:
        """By what the sum over a response's tokens is divided."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Clipped(Algorithm):
    """The clipped surrogate of PPO; with one optimizer step on each response nothing is clipped.

    Attributes:
        clip: ε > 0, how far π/π_old is followed: of a token, or of a whole response; (ε_low, ε_high) where it
            is not as far up as down, see `clipped_surrogate`.
    """

    clip: float | tuple[float, float] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        clip_range(self.clip)

    def policy_loss(self, logps: Tensor, experience: Experience) -> Tensor:
        """`clipped_surrogate` of `advantages`."""
        each = self.advantages(experience).reshape(len(logps), -1)  # a response's is that of all its tokens
        return clipped_surrogate(logps, experience.old, each.expand_as(logps), clip=self.clip)

    @abstractmethod
    def advantages(self, experience: Experience) -> Tensor:
        """Of responses, `(B, K)`, or of tokens, `(N, T)`."""


@dataclass(frozen=True, kw_only=True)
class REINFORCE(Clipped):
    """REINFORCE; the baseline is a moving average over earlier batches, which is independent of this one."""

    def advantages(self, experience: Experience) -> Tensor:
        """r − average; of the first batch, which has none before it, r − the others' mean."""
        if experience.average is None:
            return rloo_advantages(self.rewards(experience))
        return baseline_advantages(self.rewards(experience), experience.average)


@dataclass(frozen=True, kw_only=True)
class RLOO(Clipped):
    """REINFORCE leave-one-out (arXiv:2402.14740): unbiased, and with β the fixed point is `μ e^{r/β}`."""

    def advantages(self, experience: Experience) -> Tensor:
        """r − the others' mean."""
        return rloo_advantages(self.rewards(experience))


@dataclass(frozen=True, kw_only=True)
class ReMax(Clipped):
    """ReMax (arXiv:2310.10505): the baseline is the reward of the policy's likeliest response.

    It costs one more response to each prompt. The KL of that response is not counted, as the paper has none.
    """

    asks_greedy: ClassVar[bool] = True

    def advantages(self, experience: Experience) -> Tensor:
        """r − r(greedy)."""
        assert experience.greedy is not None
        return baseline_advantages(self.rewards(experience), experience.greedy)


@dataclass(frozen=True, kw_only=True)
class GRPO(Clipped):
    """GRPO (arXiv:2402.03300): groups in place of a value model, tokens averaged over each response.

    Both the division by the group's std and the mean over tokens change what is maximised: see
    `grpo_advantages` and `over_tokens`. β weighs the KL of an average token.

    Attributes:
        epsilon: added to the std.
    """

    kl: KL = "k3"
    epsilon: float = 1e-4
    by_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(epsilon=self.epsilon)

    def advantages(self, experience: Experience) -> Tensor:
        """(r − mean)/(std + ε)."""
        return grpo_advantages(self.rewards(experience), epsilon=self.epsilon)

    def length(self, experience: Experience) -> Label:
        """|y|."""
        return experience.mask.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class DrGRPO(Clipped):
    """Dr.GRPO (arXiv:2503.20783): GRPO without the division by the std or by the response's length.

    The paper's gradient is a sum over tokens; as in its code it is divided by the longest response's length.
    """

    kl: KL = "k3"
    by_token: ClassVar[bool] = True

    def advantages(self, experience: Experience) -> Tensor:
        """r − mean."""
        return dr_grpo_advantages(self.rewards(experience))

    def length(self, experience: Experience) -> Label:
        """The longest that a response may be."""
        return float(experience.longest)


@dataclass(frozen=True, kw_only=True)
class PPO(Clipped):
    """PPO (arXiv:1707.06347, for language models arXiv:1909.08593): a value for each token, and GAE.

    The value is read off the policy's own hidden states by one linear layer, as in arXiv:1909.08593; its
    gradient goes into the backbone with weight `value_weight`. Advantages are not normalised over the batch,
    so that a step does not depend on how it is divided.

    Attributes:
        gamma, lam: of `gae`.
        clip_value: how far V is followed, in units of the reward.
        value_weight: of the value's loss.
    """

    gamma: float = 1.0
    lam: float = 0.95
    clip_value: float = 0.2
    value_weight: float = 0.1
    by_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(clip_value=self.clip_value, value_weight=self.value_weight)
        for name, value in (("gamma", self.gamma), ("lam", self.lam)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} = {value}: it must lie in [0, 1]")

    def advantages(self, experience: Experience) -> Tensor:
        """`gae` of rewards by token."""
        e = experience
        assert e.values is not None
        beta = e.beta if self.kl == "reward" else 0.0
        each = token_rewards(e.rewards.flatten(), e.old - e.reference, e.mask, beta=beta)
        return gae(each, e.values, e.mask, gamma=self.gamma, lam=self.lam)

    def value_loss(self, values: Tensor, experience: Experience) -> Tensor:
        """`value_weight` times the mean of `clipped_value_loss` over the tokens of each response, `(N,)`."""
        e = experience
        assert e.values is not None
        returns = self.advantages(e) + e.values
        loss = clipped_value_loss(values, e.values, returns, clip=self.clip_value)
        return self.value_weight * over_tokens(loss, e.mask, e.mask.sum(dim=1))


@dataclass(frozen=True, kw_only=True)
class Kimi(Algorithm):
    """Kimi k1.5 (arXiv:2501.12599): a mirror step of size η as a regression, see `kimi`.

    Here β pulls towards the first policy; the paper has β = 0 and only the pull of 1/η towards the last one.

    Attributes:
        eta: η > 0; 1/τ in the paper.
    """

    eta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(eta=self.eta)

    def policy_loss(self, logps: Tensor, experience: Experience) -> Tensor:
        """`kimi`, with the mean reward of the group for its log Z."""
        rewards = self.rewards(experience)
        old = experience.old.view(rewards.shape)
        return kimi(logps.view(rewards.shape), old, rewards, eta=self.eta).view(-1, 1)
