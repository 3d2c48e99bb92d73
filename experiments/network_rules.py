"""Every rule on a language model, next to the same rule in exact arithmetic on the same game.

The game is the cycle of styles, the reference what supervised fine-tuning has made of the model, and the gap
that of the model itself, by enumeration. Nothing is shared but the rule: the model sees samples alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, stack
from nashpref.mirror import target_beta


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, length: of the task, 3^length responses.
        width, sft_steps: of the model.
        beta: β of the regularised rules.
        rounds: iterations; `every`: how many lie between measurements.
        updates, samples, batch_responses, learning_rate: of `NashConfig`; a fit draws once.
        long: how many times `updates` a best response gets, whose every fit begins at the reference; it makes
            so many times fewer rounds.
        steady_rate: its learning rate, which does not decay.
        seed: of the model, the samples and everything else.
    """

    prompts: int = 3
    length: int = 3
    width: int = 64
    sft_steps: int = 300
    beta: float = 0.1
    rounds: int = 40
    every: int = 2
    updates: int = 8
    samples: int = 128
    batch_responses: int = 32
    learning_rate: float = 3e-3
    long: int = 4
    steady_rate: float = 1e-3
    seed: int = 0


NEEDS = ("torch", "transformers", "accelerate")
SIZES = {
    "quick": Settings(
        prompts=2, length=2, width=16, sft_steps=25, rounds=4, updates=2, samples=32, batch_responses=16
    ),
    "default": Settings(),
    "full": Settings(prompts=8, length=4, sft_steps=400, beta=0.05, rounds=120, every=4),
}


def rules(beta: float) -> Mapping[str, npf.UpdateRule]:
    """By what the figure calls them; the last three seek the equilibrium of the original game, β = 0.

    The best response's β is four times that of the others, with which it would go round in circles.
    """
    return {
        "GDA": npf.GDA(beta=beta, eta=1.0),
        "MMD": npf.MMD(beta=beta, eta=1.0),
        "Nash-MD": npf.NashMD(beta=beta, eta=1.0),
        "Nash-EMA": npf.NashEMA(beta=beta, eta=1.0, decay=0.3),
        "MNPO": npf.MNPO(beta=beta, eta=1.0, weights=(0.7, 0.3)),
        "OGDA": npf.OGDA(beta=beta, eta=1.0),
        "EGPO": npf.EGPO(beta=beta, eta=1.5),
        "Nash-MP": npf.NashMP(beta=beta),
        "best response": npf.BestResponse(beta=4.0 * beta, opponent="current"),
        "COMAL": npf.COMAL(beta=beta, eta=1.5, every=15),
        "ONPO": npf.ONPO(eta=1.5),
        "MWU": npf.MWU(eta=1.0),
    }


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: see `compare`, of all rules."""
    return {"gaps": compare(settings, rules(settings.beta))}


def compare(settings: Settings, rules: Mapping[str, npf.UpdateRule]) -> Table:
    """By `method` and `round`, means over prompts: the `gap` of the language model, that of `npf.solve` with
    the same reference (`exact`), and the model's `leak`. All start from the same model.
    """
    from nashpref.experiments.networks import fine_tuned, one_thread, play
    from nashpref.llm.environments import rock_paper_scissors_of_styles

    s, parts = settings, []
    task = rock_paper_scissors_of_styles(s.prompts, length=s.length, seed=s.seed)
    game = task.game()
    with one_thread():
        start = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
        reference = task.policy(start)
        for method, rule in rules.items():
            afresh = isinstance(rule, npf.BestResponse)
            long = s.long if afresh else 1
            rounds, every, updates = s.rounds // long, max(1, s.every // long), s.updates * long
            _, measured = play(
                start,
                rule,
                task,
                reference,
                every=every,
                rounds=rounds,
                updates=updates,
                reuse=updates,
                samples=s.samples,
                batch_responses=s.batch_responses,
                learning_rate=s.steady_rate if afresh else s.learning_rate,
                schedule="constant" if afresh else "linear",
                warmup_steps=3 * s.updates,
                seed=s.seed,
            )
            trace = npf.solve(game, rule, rounds, reference=reference, record=measured["round"].tolist())
            gaps = trace.columns()["gap"].reshape(len(measured["round"]), -1)
            labels = {
                "method": np.full(len(gaps), method),
                "beta": np.full(len(gaps), target_beta(rule)),
            }
            parts.append({**labels, **measured, "exact": gaps.mean(axis=1)})
    return stack(parts)


EXPERIMENT = Experiment(
    "every rule on a language model, next to the same rule in exact arithmetic",
    SIZES,
    run,
    needs=NEEDS,
)
