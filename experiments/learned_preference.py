"""A preference that is learned from votes, in the loop: what it says of the gap, and what the truth says.

On the cycle of styles a language model is fine-tuned on demonstrations. Responses of its own, at two
temperatures, are voted on in pairs, and a general preference model is learned from the votes. EGPO then
trains the language model against that model: nothing in the loop knows the task. At each evaluation the exact
gap is measured twice, in the true game and in the learned one.

Responses at the higher temperature are there for their mistakes: from valid pairs alone a model learns
nothing of what is no response at all, and the policy would find out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import nashpref as npf
from nashpref.experiments.common import Experiment, Table, given_valid, stack
from nashpref.experiments.mixtures import mixtures

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, symbols, length: of the task.
        width: of both models, which have one layer.
        sft_steps: of fine-tuning on demonstrations.
        votes: pairs with a verdict; `temperatures`: at which the responses are sampled, equally many at each.
        planes, preference_steps, preference_rate: of the preference model.
        beta, eta: of EGPO.
        rounds, updates, samples, batch_responses, learning_rate: of `NashConfig`; every fit reuses one draw.
        evaluations: how often gaps are measured.
        seed: of everything that is drawn.
    """

    prompts: int = 3
    symbols: int = 3
    length: int = 3
    width: int = 64
    sft_steps: int = 200
    votes: int = 40_000
    temperatures: tuple[float, ...] = (1.0, 1.5)
    planes: int = 4
    preference_steps: int = 600
    preference_rate: float = 3e-3
    beta: float = 0.05
    eta: float = 1.8
    rounds: int = 32
    updates: int = 16
    samples: int = 64
    batch_responses: int = 32
    learning_rate: float = 3e-3
    evaluations: int = 16
    seed: int = 0


QUICK = Settings(
    prompts=2,
    length=2,
    width=48,
    sft_steps=80,
    votes=12_000,
    preference_steps=150,
    rounds=12,
    updates=8,
    samples=32,
    batch_responses=16,
    evaluations=6,
)
FULL = Settings(
    prompts=8,
    length=4,
    sft_steps=400,
    votes=200_000,
    preference_steps=1200,
    rounds=48,
    samples=128,
)


def run(settings: Settings) -> Mapping[str, Table]:
    """`training`: at each evaluation the step, the exact regularised gap in the true and in the learned game,
    the true one without regularisation, and the leak. `preference`: how good the learned model is.
    `mixtures`: of the demonstrator and the equilibrium, and of the policies before and after training.

    The learned game has no action for what is no response, on which the model says many things; there the
    gap is that of the policy given a response. `learned_equilibrium` is the true gap of the learned game's
    equilibrium: where a perfect optimiser of the learned preference would end.
    """
    from nashpref.experiments.networks import one_thread

    with one_thread():
        return _tables(settings)


def _tables(s: Settings) -> Mapping[str, Table]:
    from nashpref.experiments.judges import learned, votes
    from nashpref.experiments.networks import fine_tuned
    from nashpref.llm.environments import rock_paper_scissors_of_styles
    from nashpref.llm.nash import NashConfig, NashTrainer

    beta = s.beta
    task = rock_paper_scissors_of_styles(s.prompts, s.symbols, s.length, seed=s.seed)
    policy = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
    pairs = votes(task, policy, s.votes, temperatures=s.temperatures, seed=s.seed)
    preference = learned(
        task.tokenizer,
        pairs,
        width=s.width,
        planes=s.planes,
        steps=s.preference_steps,
        rate=s.preference_rate,
        seed=s.seed,
    )
    mu = task.policy(policy)
    P, L = (np.stack([each.matrix(x, task.responses) for x in task.prompts]) for each in (task, preference))
    game, nu = npf.MatrixGame(L), given_valid(mu)
    truth = task.metrics(beta, mu)
    rows: list[dict[str, float]] = []

    def measure(model: nn.Module) -> dict[str, float]:
        learned_gap = float(np.mean(npf.duality_gap(game, given_valid(task.policy(model)), beta, nu)))
        rows.append(truth(model) | {"learned_gap": learned_gap})
        return rows[-1]

    measure(policy)
    rule = npf.EGPO(beta=beta, eta=s.eta)
    steps = s.rounds * s.updates * len(rule.steps(0))
    every = steps // s.evaluations
    with tempfile.TemporaryDirectory() as folder:
        args = NashConfig(
            output=folder,
            rounds=s.rounds,
            updates=s.updates,
            reuse=s.updates,
            samples=s.samples,
            batch_responses=s.batch_responses,
            batch_size=s.prompts,
            max_new_tokens=task.max_new_tokens,
            learning_rate=s.learning_rate,
            eval_every=every,
            seed=s.seed,
        )
        NashTrainer(
            policy, rule, preference, args, task.prompts, task.tokenizer, compute_metrics=measure
        ).train(progress=False)
    columns = {
        "gap": "gap",
        "learned_gap": "learned_gap",
        "gap/unregularised": "unregularised",
        "leak": "leak",
    }
    training = {name: np.array([row[found] for row in rows]) for found, name in columns.items()}
    exact, rng = task.game(invalid=False), np.random.default_rng(s.seed)
    star = npf.equilibrium(exact, beta, task.reference).policy
    pairings = {
        "demonstrator, equilibrium": (task.reference, star),
        "before, after training": (nu, given_valid(task.policy(policy))),
    }
    strict, diagonal = np.abs(P - 0.5) > 0.02, np.eye(task.count, dtype=bool)
    learned_star = npf.equilibrium(game, beta, nu).policy
    quality = {
        "votes": s.votes,
        "wrong": np.mean((np.sign(L - 0.5) != np.sign(P - 0.5))[strict]),
        "error": np.mean(np.abs(L - P)[:, ~diagonal]),
        "learned_equilibrium": np.mean(npf.duality_gap(exact, learned_star, beta, nu)),
    }
    return {
        "training": {"step": np.minimum(every * np.arange(len(rows)), steps)} | training,
        "preference": {name: np.array([value]) for name, value in quality.items()},
        "mixtures": stack(
            [
                {"policies": np.full(len(table["weight"]), name), **table}
                for name, parts in pairings.items()
                for table in [mixtures(task, *parts, rng)]
            ]
        ),
    }


EXPERIMENT = Experiment(
    "a learned preference in the loop: the gap that it sees, and the true one",
    {"quick": QUICK, "default": Settings(), "full": FULL},
    run,
    needs=("torch", "transformers", "accelerate"),
)
