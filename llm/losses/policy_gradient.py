"""Policy gradients of a reward, as RLHF takes them: advantages, surrogate losses, and the KL's estimators.

The objective of all is `E_π[r(x, y)] − β KL(π‖μ)`, whose maximum is `π ∝ μ e^{r/β}`. Two layouts:

* `(B, K)`: one number for each of K responses to each of B prompts, such as a reward;
* `(N, T)` with a mask: one number for each token of N responses, such as a log-probability. A *whole
  response* is the case T = 1, its log-probability being the sum over its tokens. What is said of tokens
  below holds of whole responses too, and which of the two a method takes is part of the method.

Everything but `logps` and `values` is a constant. Sums over the tokens of a response are `over_tokens`' and
come last, because methods differ in what they divide them by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nashpref.llm.losses.common import Label, positive, same_shape

Estimator = Literal["k1", "k2", "k3"]

# --- advantages of whole responses ---


def baseline_advantages(rewards: Tensor, baseline: Label) -> Tensor:
    """REINFORCE: `A_i = r_i − b`.

    Unbiased for every b that does not depend on the response: a number, such as the average over *earlier*
    batches, or `(B,)`, such as the reward of the policy's likeliest response, which is ReMax. The mean over
    the same batch is no such b: see `dr_grpo_advantages`.

    Args:
        rewards: `(B, K)`.
        baseline: b, a number or `(B,)`.

    Returns:
        `(B, K)`.

    Source: Williams 1992; ReMax: arXiv:2310.10505, eq. 5.
    """
    if isinstance(baseline, Tensor):
        same_shape(rewards_of_a_prompt=rewards[:, 0], baseline=baseline)
        baseline = baseline[:, None]
    return rewards - baseline


def rloo_advantages(rewards: Tensor) -> Tensor:
    """RLOO: `A_i = r_i − (K − 1)⁻¹ Σ_{j≠i} r_j`, the others' mean as the baseline.

    Guarantee: unbiased, since the others are drawn independently.

    Args:
        rewards: `(B, K)`, K ≥ 2.

    Returns:
        `(B, K)`.

    Raises:
        ValueError: a single response, which has no others.

    Source: arXiv:2402.14740, eq. 8.
    """
    K = _group(rewards)
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (K / (K - 1))


def grpo_advantages(rewards: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """GRPO: `A_i = (r_i − mean(r)) / (std(r) + ε)` within the group; std of K − 1 degrees of freedom.

    The division makes a prompt count by the signs of its rewards' differences rather than by their size:
    the expected gradient is not that of `E[r]`, and prompts that are nearly always or nearly never solved
    weigh more. A group of equal rewards has advantage 0.

    Args:
        rewards: `(B, K)`, K ≥ 2.
        epsilon: ε > 0.

    Returns:
        `(B, K)`.

    Raises:
        ValueError: a single response, or ε ≤ 0.

    Source: arXiv:2402.03300, §4.1.2, without ε there.
    """
    _group(rewards)
    positive(epsilon=epsilon)
    return dr_grpo_advantages(rewards) / (rewards.std(dim=1, keepdim=True) + epsilon)


def dr_grpo_advantages(rewards: Tensor) -> Tensor:
    """Dr.GRPO: `A_i = r_i − mean(r)`.

    Guarantee: (1 − 1/K) times `rloo_advantages`, so unbiased up to that factor.

    Args:
        rewards: `(B, K)`, K ≥ 2.

    Returns:
        `(B, K)`.

    Raises:
        ValueError: a single response.

    Source: arXiv:2503.20783, §3.2.
    """
    _group(rewards)
    return rewards - rewards.mean(dim=1, keepdim=True)


# --- advantages of tokens ---


def token_rewards(rewards: Tensor, log_ratio: Tensor, mask: Tensor, *, beta: Label) -> Tensor:
    """`r_t = −β (log π(y_t) − log μ(y_t))`, and the response's reward at its last token besides.

    Summed over the tokens, the reward of the whole response less β times `k1`.

    Args:
        rewards: r(x, y), `(N,)`.
        log_ratio: `log π(y_t|y_<t) − log μ(y_t|y_<t)` of the policy that drew, `(N, T)`.
        mask: 1 at the tokens of a response, which are neighbours, `(N, T)`.
        beta: β ≥ 0.

    Returns:
        `(N, T)`, 0 outside.

    Source: arXiv:1909.08593, eq. 2, by token as in its code.
    """
    same_shape(log_ratio=log_ratio, mask=mask)
    last = mask.long().cumsum(dim=1) * mask.long() == mask.sum(dim=1, keepdim=True)
    return (last * rewards[:, None] - beta * log_ratio) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """`A_t = Σ_{l≥0} (γλ)^l δ_{t+l}`, `δ_t = r_t + γ V_{t+1} − V_t`, and V = 0 after the last token.

    λ = 1 is the discounted return less V_t: unbiased whatever V is. λ = 0 is δ_t, which is unbiased if V is
    right. What V is to learn is `A_t + V_t`.

    Args:
        rewards: r_t, `(N, T)`.
        values: V_t, of the response's beginning before token t is said, `(N, T)`.
        mask: 1 at the tokens of a response, which are neighbours, `(N, T)`.
        gamma: γ in [0, 1]. lam: λ in [0, 1].

    Returns:
        `(N, T)`, 0 outside.

    Source: arXiv:1506.02438, eq. 16.
    """
    _unit(gamma=gamma, lam=lam)
    same_shape(rewards=rewards, values=values, mask=mask)
    values, weight = values * mask, mask.to(values.dtype)
    advantages = torch.zeros_like(values)
    following = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = weight[:, t] * (delta + gamma * lam * following)
        advantages[:, t], next_value = following, values[:, t]
    return advantages


# --- losses ---


def clipped_surrogate(
    logps: Tensor, old: Tensor, advantages: Tensor, *, clip: float | tuple[float, float]
) -> Tensor:
    """PPO: `−min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A)` with `ρ = π/π_old`.

    At π = π_old its gradient is `−A ∇log π`, that of REINFORCE, so that on the first step after drawing
    nothing is clipped. It is zero where ρ has already moved by more than ε in the direction of A: below
    1 − ε_low of what is blamed, above 1 + ε_high of what is praised. An ε_high above ε_low lets what was
    unlikely and turned out well grow for longer.

    Args:
        logps: log π, `(N, T)`, of tokens or of whole responses.
        old: log π_old of the policy that drew, `(N, T)`.
        advantages: `(N, T)`.
        clip: ε > 0 for both, or (ε_low, ε_high).

    Returns:
        `(N, T)`.

    Raises:
        ValueError: an ε that is not positive, or not two of them.

    Source: arXiv:1707.06347, eq. 7; with two ε arXiv:2503.14476, eq. 10.
    """
    low, high = clip_range(clip)
    same_shape(logps=logps, old=old, advantages=advantages)
    ratio = torch.exp(logps - old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - low, 1.0 + high) * advantages)


def clip_range(clip: float | tuple[float, float]) -> tuple[float, float]:
    """(ε_low, ε_high) of what `clipped_surrogate` takes.

    Raises:
        ValueError: an ε that is not positive, or not two of them.
    """
    if isinstance(clip, int | float):
        positive(clip=clip)
        return clip, clip
    if len(clip) != 2:
        raise ValueError(f"clip = {clip}: one number is needed, or two, how far down and how far up")
    low, high = clip
    positive(clip_low=low, clip_high=high)
    return low, high


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """`½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²)`.

    Args:
        values: V, `(N, T)`, with gradient.
        old: V_old, when the responses were drawn, `(N, T)`.
        returns: R, `(N, T)`.
        clip: ε > 0, in units of the reward.

    Returns:
        `(N, T)`.

    Source: the code of arXiv:1707.06347 (OpenAI baselines).
    """
    positive(clip=clip)
    same_shape(values=values, old=old, returns=returns)
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def kimi(logps: Tensor, old: Tensor, rewards: Tensor, *, eta: float, log_z: Tensor | None = None) -> Tensor:
    """Kimi k1.5: `½η (r − τ log Z − τ log(π/π_t))²`, τ = 1/η.

    `τ log Z = τ log E_{π_t} e^{r/τ}`, for which the paper takes the mean reward of the group in practice, as
    is done here unless it is given. That is right to first order in η.

    The factor ½η, which the paper leaves out, makes the gradient at π_t that of `−A log π`, whatever η.

    Guarantee: with the true log Z the minimum, and the only one, is `π ∝ π_t e^{ηr}`, whatever the responses
    are drawn from: the step of `nashpref.MWU` with r for the payoff. With `r − β log(π_t/μ)` for r it is the
    mirror step towards `μ e^{r/β}`.

    Args:
        logps: log π of whole responses, `(B, K)`.
        old: log π_t, `(B, K)`. The paper's reference is the policy of the last round, not the first one.
        rewards: `(B, K)`.
        eta: η > 0; 1/τ in the paper.
        log_z: τ log Z, `(B,)`.

    Returns:
        `(B, K)`.

    Source: arXiv:2501.12599, eq. 3 and the gradient below it.
    """
    positive(eta=eta)
    same_shape(logps=logps, old=old, rewards=rewards)
    centred = baseline_advantages(rewards, rewards.mean(dim=1) if log_z is None else log_z)
    return 0.5 * eta * (centred - (logps - old) / eta).square()


def kl_estimate(logps: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """What a sample y from π says of `KL(π‖μ)`; with `d = log μ(y) − log π(y)`:

    * k1: `−d`. Unbiased. As a loss it does nothing: its gradient `∇log π` has mean 0.
    * k2: `d²/2`. Biased, by the third order in d. Its gradient `−d ∇log π` has the mean `∇KL(π‖μ)`: the right
      one.
    * k3: `e^d − 1 − d ≥ 0`. Unbiased. Its gradient `(1 − μ/π) ∇log π` has the mean `∇KL(μ‖π)`, the KL with
      its arguments exchanged: equal to the right one to first order about μ, and weak far from it, where
      |1 − μ/π| < 1 however far π has gone.

    −β k1 in the reward gives `−β E_π[−d ∇log π] = −β∇KL(π‖μ)`, as −β k2 does in the loss.

    On whole responses these are the KL of the policies. Token by token the sum over t has, for k1 and k3, the
    same mean as a value; but its gradient leaves out how a token changes what comes after it: it is that of
    `Σ_t E_{y_<t} KL(π(·|y_<t)‖μ(·|y_<t))` with the beginnings y_<t held fixed. `token_rewards`, where a token
    answers for all later ones, does not leave that out.

    All of this is of samples from π. After optimizer steps on the same responses they are from π_old.

    Args:
        logps: log π, `(N, T)`, of tokens or of whole responses.
        reference: log μ, `(N, T)`.
        estimator: which.

    Returns:
        `(N, T)`.

    Raises:
        ValueError: another estimator.

    Source: Schulman, "Approximating KL divergence", 2020; of the gradients, arXiv:2506.09477.
    """
    same_shape(logps=logps, reference=reference)
    d = reference - logps
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2.0
    if estimator == "k3":
        return torch.expm1(d) - d
    raise ValueError(f"estimator = {estimator!r}: choose 'k1', 'k2' or 'k3'")


def over_tokens(values: Tensor, mask: Tensor, length: Label = 1.0) -> Tensor:
    """`Σ_t values_t / length` over the tokens of each response.

    * 1: the sum, as the gradient of `E[r]` has it.
    * |y|, `mask.sum(dim=1)`: the mean, as in GRPO. Of two wrong responses the longer one is then blamed less
      for each of its tokens, and so responses that are wrong become longer.
    * a number, the longest response allowed: Dr.GRPO, which is the sum with another step size.

    Args:
        values: `(N, T)`.
        mask: 1 at the tokens that count, `(N, T)`.
        length: a number or `(N,)`.

    Returns:
        `(N,)`.
    """
    same_shape(values=values, mask=mask)
    return (values * mask).sum(dim=1) / length


@dataclass(frozen=True, kw_only=True)
class AdaptiveKL:
    """The weight of the KL, moved until the KL is what is wanted: `β ← β (1 + κ clip(KL/target − 1, ±0.2))`.

    Attributes:
        start: β at first, > 0.
        target: of `KL(π‖μ)`, in nats for a whole response, > 0.
        rate: κ in (0, 1].

    Source: arXiv:1909.08593, §2.2.
    """

    start: float
    target: float
    rate: float = 0.1

    def __post_init__(self) -> None:
        positive(start=self.start, target=self.target, rate=self.rate)
        _unit(rate=self.rate)

    def __call__(self, beta: float, kl: float) -> float:
        """The next β, after a batch on which the KL was `kl`."""
        return beta * (1.0 + self.rate * min(max(kl / self.target - 1.0, -0.2), 0.2))


def _group(rewards: Tensor) -> int:
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}: (B, K) with K ≥ 2 is needed")
    return int(rewards.shape[1])


def _unit(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise ValueError(f"{name} = {value}: it must lie in [0, 1]")
