"""One answer out of several: by a reward, by a vote, or by a preference that need not be a ranking.

All take responses that are there already, `nashpref.llm.sampling.sample(…).texts` or anybody else's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nashpref.equilibrium import equilibrium
from nashpref.games.matrix import MatrixGame
from nashpref.llm.data import Text
from nashpref.llm.preferences.adapters import Preference, Reward, checked, sample
from nashpref.llm.preferences.tournament import win_rates
from nashpref.policies import FloatArray, IntArray

Draw = Callable[[Sequence[Text]], Sequence[str]]
"""One response to each of the prompts, drawn from the policy."""

Extract = Callable[[str], str | None]
"""The answer in a response; None where there is none."""


class Selection(NamedTuple):
    """What was chosen of n responses to each of B prompts.

    Attributes:
        texts: the chosen ones, B.
        chosen: which they are, `(B,)`.
        scores: of all, `(B, n)`: rewards, or the mean probability to win.
        mixture: the probability with which each could have been chosen, `(B, n)`.
    """

    texts: list[str]
    chosen: IntArray
    scores: FloatArray
    mixture: FloatArray


def best_of_n(reward: Reward, prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> Selection:
    """The response of highest reward, the first of several.

    Args:
        reward: `(prompts, responses) -> numbers`, asked once.
        prompts: B texts.
        responses: n to each.

    Raises:
        ValueError: unequal numbers of responses, or a reward that fails, is not finite or not one for each.
    """
    n = _count(prompts, responses)
    asked = [prompt for prompt in prompts for _ in range(n)]
    flat = [response for each in responses for response in each]
    scores = rewards_of(reward, asked, flat).view(-1, n).numpy()
    return _surely(responses, scores.argmax(axis=1), scores)


def bradley_terry_of_n(
    preference: Preference, prompts: Sequence[Text], responses: Sequence[Sequence[str]]
) -> Selection:
    """The response that a Bradley–Terry fit of the n×n probabilities ranks first.

    Where everyone has played everyone equally often, the maximum-likelihood scores are in the order of the
    mean win-rates, their sufficient statistic (Ford 1957), and so there is nothing to be fitted: this is also
    the answer where no finite scores exist. It is what a reward model can make of the preference.

    Args:
        preference, prompts, responses: as of `equilibrium_of_n`.
    """
    scores = np.asarray(matrices(preference, prompts, responses).mean(axis=2))
    # Rows that are equal up to rounding are ties, of which the first is taken.
    return _surely(responses, scores.round(12).argmax(axis=1), scores)


def equilibrium_of_n(
    preference: Preference,
    prompts: Sequence[Text],
    responses: Sequence[Sequence[str]],
    generator: torch.Generator,
    *,
    beta: float = 0.0,
) -> Selection:
    """A response drawn from the equilibrium of the n responses: best-of-n under a general preference.

    `π* = argmax_π min_π' P(π ≻ π') − β KL(π‖u) + β KL(π'‖u)` over mixtures of the n responses, u uniform,
    which is the policy's own empirical distribution: with β = 0 no response among the n beats the mixture
    more than half the time, whereas any single one may lose to another. Under a Bradley–Terry preference it
    is best-of-n.

    Args:
        preference: any; a model that reads each response by itself reads n for a prompt (`win_rates`).
        prompts: B texts.
        responses: n to each.
        generator: draws from the mixtures, on the CPU.
        beta: weight of the KL towards the n responses as they were drawn, ≥ 0.

    Raises:
        ValueError: unequal numbers of responses, or a preference that is no probability, with its sample.
    """
    P = matrices(preference, prompts, responses)
    mixture = np.asarray(equilibrium(MatrixGame(P), beta).policy)
    index = torch.multinomial(torch.from_numpy(mixture), 1, generator=generator)[:, 0].numpy()
    return _chosen(responses, index, P.mean(axis=2), mixture)


def matrices(
    preference: Preference, prompts: Sequence[Text], responses: Sequence[Sequence[str]]
) -> FloatArray:
    """`P[b, i, j] = Pr(response i ≻ response j | prompt b)`, `(B, n, n)`, complementary to the last bit."""
    _count(prompts, responses)
    P = win_rates(preference, prompts, responses, responses).numpy()
    return np.asarray(0.5 + 0.5 * (P - P.swapaxes(1, 2)))


class Accepted(NamedTuple):
    """A draw from `μ e^{r/β}`.

    Attributes:
        texts: B responses.
        rewards: `(B,)`.
        draws: how many responses each prompt took, `(B,)`.
        exact: whether the response was accepted, `(B,)`; else it is the best of the draws.
    """

    texts: list[str]
    rewards: FloatArray
    draws: IntArray
    exact: IntArray


def rejection_sampling(
    draw: Draw,
    reward: Reward,
    prompts: Sequence[Text],
    generator: torch.Generator,
    *,
    beta: float,
    bound: float,
    tries: int = 100,
) -> Accepted:
    """RLHF's optimum `π ∝ μ e^{r/β}` from draws of μ, each accepted with probability `e^{(r − bound)/β}`.

    Exact whenever r ≤ bound everywhere; on average it takes `1/E_μ[e^{(r − bound)/β}]` draws.

    Args:
        draw: from μ.
        reward: r, asked once for all prompts that are open.
        prompts: B texts.
        generator: of acceptance, on the CPU.
        beta: β > 0.
        bound: no reward may be above it.
        tries: the most draws for a prompt, after which the best one is kept, and `exact` is 0.

    Raises:
        ValueError: numbers out of range, or a reward above the bound, with its sample.
    """
    if not beta > 0.0 or tries < 1:
        raise ValueError(f"beta = {beta}, tries = {tries}: a positive weight and at least one try are needed")
    texts, rewards = [""] * len(prompts), np.full(len(prompts), -np.inf)
    draws, exact = np.zeros(len(prompts), dtype=np.int64), np.zeros(len(prompts), dtype=np.int64)
    for _ in range(tries):
        open_ = np.flatnonzero(exact == 0).tolist()
        if not open_:
            break
        asked = [prompts[i] for i in open_]
        drawn = draw(asked)
        found = rewards_of(reward, asked, drawn)
        luck = torch.rand(len(open_), generator=generator, dtype=torch.float64).log()
        for i, text, r, u in zip(open_, drawn, found.tolist(), luck.tolist(), strict=True):
            if r > bound:
                raise ValueError(
                    f"the reward gave {r} for {sample(i, prompts[i])}, above bound = {bound}: raise the bound"
                )
            draws[i] += 1
            accepted = u <= (r - bound) / beta
            if accepted or r > rewards[i]:
                texts[i], rewards[i], exact[i] = text, r, int(accepted)
    return Accepted(texts, rewards, draws, exact)


class Vote(NamedTuple):
    """The answer that most of n responses give.

    Attributes:
        answers: B answers; None where no response has one.
        texts: for each the first response that gives it, or the first of all.
        shares: the answer's share of the n responses, `(B,)`.
    """

    answers: list[str | None]
    texts: list[str]
    shares: FloatArray


def self_consistency(extract: Extract, responses: Sequence[Sequence[str]]) -> Vote:
    """The majority's answer (arXiv:2203.11171); of several with as many votes, the one that came first.

    Args:
        extract: the answer in a response; responses without one have no vote.
        responses: n ≥ 1 to each of B prompts.

    Raises:
        ValueError: a prompt without responses.
    """
    answers: list[str | None] = []
    texts, shares = [], []
    for b, each in enumerate(responses):
        if not each:
            raise ValueError(f"responses[{b}] is empty: there is nothing to vote on")
        found = [extract(response) for response in each]
        votes = Counter(answer for answer in found if answer is not None)
        winner = max(votes, key=lambda answer: votes[answer], default=None)  # a Counter keeps the order
        answers.append(winner)
        texts.append(each[found.index(winner) if winner is not None else 0])
        shares.append(votes[winner] / len(each) if winner is not None else 0.0)
    return Vote(answers, texts, np.array(shares))


def rewards_of(reward: Reward, prompts: Sequence[Text], responses: Sequence[Text]) -> Tensor:
    """`r(x, y)` of N samples, `(N,)` float64; whatever goes wrong is a `ValueError` that names the sample."""
    try:
        values = reward(prompts, responses)
    except Exception as error:
        raise ValueError(f"the reward failed at {_culprit(reward, prompts, responses)}: {error!r}") from error
    return checked(values, prompts, "the reward", -np.inf, np.inf)


def _culprit(reward: Reward, prompts: Sequence[Text], responses: Sequence[Text]) -> str:
    """The first sample at which the reward fails also when it is asked alone."""
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        try:
            reward([prompt], [response])
        except Exception:
            return sample(i, prompt)
    return f"{len(prompts)} samples together, though at none of them alone"


def _count(prompts: Sequence[Text], responses: Sequence[Sequence[str]]) -> int:
    """n."""
    counts = sorted({len(each) for each in responses})
    if len(prompts) != len(responses) or len(counts) != 1 or counts[0] < 1:
        raise ValueError(
            f"{len(prompts)} prompts, {len(responses)} groups of {counts} responses: one group for each "
            "prompt is needed, all equally large"
        )
    return counts[0]


def _surely(responses: Sequence[Sequence[str]], index: IntArray, scores: FloatArray) -> Selection:
    return _chosen(responses, index, scores, np.eye(scores.shape[1])[index])


def _chosen(
    responses: Sequence[Sequence[str]], index: IntArray, scores: FloatArray, mixture: FloatArray
) -> Selection:
    texts = [each[i] for each, i in zip(responses, index.tolist(), strict=True)]
    return Selection(texts, index, scores, mixture)
