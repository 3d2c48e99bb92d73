"""How far a language model is from Nash at least, where responses are too many to enumerate.

Nothing can be said from above: a policy may be beaten by a response that nobody has thought of. From below,
every opponent that beats it is a proof, and one is found by training it.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from torch import nn

from nashpref.llm.completions import Asked, Generate
from nashpref.llm.intervals import ENDS
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.online import read_prompts
from nashpref.llm.opponents import EVALUATION, Texts, drawn, mean_win_rates
from nashpref.llm.policies import Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.mirror import MirrorStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARES = np.geomspace(0.001, 0.999, 24)  # of his wealth that a gambler may stake, see `lower_bound`


@dataclass(frozen=True, slots=True)
class Exploitability:
    """Of a policy π: `max_π' P(π' ≻ π) − 1/2`, half the duality gap, from an opponent π' that was trained.

    Attributes:
        estimate: `P(π' ≻ π) − 1/2`, from samples; 0 or about it where training has found nothing that wins.
        low: with probability 97.5 % no more than the exploitability, and at least 0, which π' = π attains.
        steps: optimizer steps that π' was trained for.
        rows: prompts it was then compared on, `samples` responses of each policy to each.
    """

    estimate: float
    low: float
    steps: int
    rows: int

    def metrics(self) -> dict[str, float]:
        """For `compute_metrics`."""
        return {
            "exploitability_lower_bound": self.low,
            "exploitability_lower_bound/estimate": self.estimate,
        }


@dataclass(frozen=True)
class Approach:
    """Towards the best response to where training started: `π_{t+1} ∝ π_t exp(η q_opponent)`.

    The opponent is never written, and so stays what it was. In the exact game π_t is `π_0 exp(t η q)`, up to
    a factor.
    """

    eta: float

    def steps(self, t: int) -> tuple[MirrorStep, ...]:
        """One step."""
        return (MirrorStep("current", {"current": 1.0}, {"opponent": self.eta}),)


def exploitability(
    model: str | Path | nn.Module,
    preference: Preference,
    args: NashConfig,
    train_dataset: Any,
    processing_class: PreTrainedTokenizerBase | None = None,
    *,
    eval_dataset: Any = None,
    eta: float = 4.0,
    generate: Generate | None = None,
) -> Exploitability:
    """Train a best response to a language model, and say how often it wins at least.

    ```python
    compute_metrics=lambda model: exploitability(model, preference, budget, prompts, tokenizer).metrics()
    ```

    logs it at each evaluation of any trainer.

    After each round the response meets the policy on the prompts that are trained on; the one that did best,
    or π itself, is then compared with it on responses that nothing was chosen by.

    What `low` promises: given both policies, rows are independent and their win-rates in [0, 1], and
    `lower_bound` needs nothing else; no number of rows is too small, and the preference is as it is asked. It
    is about the policy as it is sampled (`temperature`, `top_k`, `max_new_tokens`), on average over the rows
    of `eval_dataset`. So few prompts can be given many times each, and then it is about these. Where the rows
    are prompts drawn from many, and others than those trained on, it is about these many.

    The response starts as a copy of π and learns from its own samples: against a policy that is nearly
    deterministic it finds nothing, and the bound is 0 where the truth may be 1/2.

    Not the regularised gap: the KL of a policy to its reference has no bound that samples could give, since
    log-ratios have none.

    Args:
        model: π, in the weights it has: left as it is, bit for bit. What requires a gradient is trained, in a
            copy; a model with new adapters trains these.
        preference: which of two responses wins.
        args: the budget, `rounds` × `updates` optimizer steps; how they are taken, and `samples`. The best
            response is kept nowhere, and nothing is written to `output`.
        train_dataset, processing_class, generate: as of `NashTrainer`.
        eval_dataset: rows to compare on; None: the prompts that are trained on.
        eta: η of `Approach`; `rounds · η` is how sharply the response chooses, for q in [−1/2, 1/2].

    Raises:
        ValueError: `args.lora`, or a mistake in an argument.
    """
    if args.lora is not None:
        raise ValueError("args.lora: would change the model; give exploitability one with adapters")
    if not (math.isfinite(eta) and eta > 0.0):
        raise ValueError(f"eta = {eta}: a step size must be finite and positive")

    score, winner = 0.5, cast("Weights | None", None)  # None: π itself

    def answers(of: Weights, to: Sequence[Asked], stream: int) -> Texts:
        return drawn(trainer.space, of, to, 0, EVALUATION + stream, args.batch_size)

    def compete(_: nn.Module) -> dict[str, float]:
        nonlocal score, winner
        response = trainer.current()
        rates = mean_win_rates(preference, trainer.prompts, answers(response, trainer.prompts, 1), known)
        if rates.mean() > score:
            score, winner = float(rates.mean()), response
        return {}

    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        trainer = NashTrainer(
            model,
            Approach(eta),
            preference,
            dataclasses.replace(args, output=folder, eval_every=args.updates, save_every=0),
            train_dataset,
            processing_class,
            compute_metrics=compete,
            generate=generate,
        )
        store, prompts = trainer.space.store, trainer.prompts
        if eval_dataset is not None:
            prompts = read_prompts(eval_dataset, trainer.space)
        training = [module for module in trainer.model.modules() if module.training]
        policy = store.take()
        known = answers(policy, trainer.prompts, 0)
        try:
            with store.loaded(store.take()):  # trained in place, and so a copy of it is
                trainer.train(progress=False)
        finally:
            trainer.model.eval()
            for module in training:
                module.training = True
    ours, theirs = answers(winner or policy, prompts, 3), answers(policy, prompts, 2)
    rates = mean_win_rates(preference, prompts, ours, theirs)
    low = max(0.0, lower_bound(rates) - 0.5)
    return Exploitability(float(rates.mean()) - 0.5, low, trainer.steps, len(prompts))


def lower_bound(values: ArrayLike, confidence: float = ENDS[1]) -> float:
    """A number that with this confidence is at most `μ = n⁻¹ Σ_r E[X_r]`, for any independent X_r in [0, 1].

    A gambler who bets on `X > m`, each time with a share c of his wealth, comes to `Π_r (1 − c + c X_r/m)`.
    If μ ≤ m, that is at most 1 in expectation (means of products are products, and these at most
    `(1 − c + c μ/m)^n`), and so the mean over some shares c exceeds `1/(1 − confidence)` with probability at
    most 1 − confidence. The bound is the m at which it does not any more.

    It holds for every n, and adapts to the variance. For large n it is 1.75 times as far below the mean as
    the normal approximation's, which with 8 values is above μ in 6 % of cases where 2.5 % are promised.

    Args:
        values: `(n,)`; they need not have the same distribution.
        confidence: below 1.

    Raises:
        ValueError: no values, or one outside [0, 1].

    Source: Waudby-Smith and Ramdas (2024), arXiv:2010.09686, with shares that do not depend on what is seen.
    """
    x = np.asarray(values, dtype=np.float64)
    if not x.size or not (x.min() >= 0.0 and x.max() <= 1.0):
        raise ValueError(f"values = {x}: at least one outcome, all in [0, 1]")

    def excess(m: float) -> float:
        wealth = np.log1p(SHARES[:, None] * (x / m - 1.0)).sum(axis=1)
        return float(np.logaddexp.reduce(wealth)) - math.log(len(SHARES)) + math.log1p(-confidence)

    least = np.finfo(float).eps
    return 0.0 if excess(least) < 0.0 else float(brentq(excess, least, x.mean()))
