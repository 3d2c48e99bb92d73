"""DPO, RLHF and Nash methods on a language model, where preferences cycle and where a reward explains them.

Every method starts from the same model. DPO is told what the judge says of pairs of its responses, PPO and
GRPO the Bradley–Terry reward that fits this best, which is the one that DPO has in mind. Nash-MD and EGPO ask
the judge about what they say themselves.

On the control all should meet. With a reward of small range, `σ(r(a) − r(b)) ≈ 1/2 + (r(a) − r(b))/4`: the
equilibrium for β is close to RLHF's optimum for 4β, and so this is the β of RLHF and of DPO, everywhere.
The exact optimum of each method tells what is left of the difference.

Gaps are those of a policy given that it says a response: pairs of responses tell DPO nothing of all else,
and it leaks. How much is a column of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import nashpref as npf
from nashpref.bradley_terry import fit_bradley_terry
from nashpref.closed_forms import rlhf
from nashpref.experiments.common import Experiment, Table, given_valid
from nashpref.policies import FloatArray

if TYPE_CHECKING:
    from nashpref.llm.exact_task import Task

SLOPE = 4.0  # of log-odds over probability, at one half
SHOWN = 12  # responses whose probabilities are told


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, length: of both tasks, 3^length responses.
        strength: of the reward of the control.
        width, sft_steps: of the model.
        beta: β of the game.
        pairs, dpo_steps, dpo_rate: soft labels for DPO, and its optimizer.
        rlhf_rounds, rlhf_samples, rlhf_rate: of `RLHFConfig`; two optimizer steps for each drawing.
        rounds, updates, samples, batch_responses, learning_rate: of `NashConfig`; a fit draws once.
        seed: of the model, the samples and everything else.
    """

    prompts: int = 3
    length: int = 3
    strength: float = 0.6
    width: int = 64
    sft_steps: int = 300
    beta: float = 0.1
    pairs: int = 4000
    dpo_steps: int = 300
    dpo_rate: float = 3e-4
    rlhf_rounds: int = 200
    rlhf_samples: int = 64
    rlhf_rate: float = 1e-3
    rounds: int = 50
    updates: int = 8
    samples: int = 128
    batch_responses: int = 32
    learning_rate: float = 3e-3
    seed: int = 0


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: by `task` and `method`, means over prompts: the regularised `gap` of the language model, that
    of the method in exact arithmetic (`exact`: RLHF's optimum for DPO, PPO and GRPO, the rule's last iterate
    for the others), and the `leak`. `policies`: of the cycle's first prompt, the probability of the
    responses that are likeliest in equilibrium, by `method`.
    """
    from nashpref.experiments.networks import one_thread
    from nashpref.llm.environments import bradley_terry, rock_paper_scissors_of_styles

    s = settings
    cycle = rock_paper_scissors_of_styles(s.prompts, length=s.length, seed=s.seed)
    control = bradley_terry(s.prompts, length=s.length, strength=s.strength, seed=s.seed)
    gaps: list[tuple[object, ...]] = []
    policies: list[tuple[object, ...]] = []
    with one_thread():
        for name, task in (("cycle", cycle), ("Bradley–Terry", control)):
            game = task.game(invalid=False)
            trained, exact = methods(task, s)
            final = {method: given_valid(policy) for method, policy in trained.items()}
            mu = final["start"]
            for method in trained:
                gap, ideal = (
                    np.mean(npf.duality_gap(game, policy, s.beta, mu))
                    for policy in (final[method], exact[method])
                )
                gaps.append((name, method, gap, ideal, trained[method][:, -1].mean()))
            if task is cycle:
                star = npf.equilibrium(game, s.beta, mu).policy
                for method, policy in ({"equilibrium": star} | final).items():
                    for i in np.argsort(-star[0], kind="stable")[:SHOWN]:
                        policies.append((method, task.responses[i], policy[0, i]))
    return {
        "gaps": as_table(("task", "method", "gap", "exact", "leak"), gaps),
        "policies": as_table(("method", "response", "probability"), policies),
    }


def as_table(names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> Table:
    """Columns from rows."""
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def methods(task: Task, settings: Settings) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """By method, the probabilities of the trained model `(B, n + 1)` and, in exact arithmetic, `(B, n)`."""
    from nashpref.experiments.networks import aligned, fine_tuned, play, reinforced
    from nashpref.llm.algorithms import GRPO, PPO

    s, beta = settings, SLOPE * settings.beta
    model = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
    start = task.policy(model)
    mu, game = given_valid(start), task.game(invalid=False)
    rewards = best_fit(task, mu)
    ideal = optimum(task, mu, beta)
    trained, exact = {"start": start}, {"start": mu}

    pairs = task.pairs(np.random.default_rng(s.seed), s.pairs, policy=start, soft=True)
    dpo = aligned(
        model, pairs, beta, task.tokenizer, steps=s.dpo_steps, learning_rate=s.dpo_rate, seed=s.seed
    )
    trained["DPO"], exact["DPO"] = task.policy(dpo), ideal
    # With the KL in the reward GRPO has RLHF's optimum; with k3 in the loss it has one of its own.
    for algorithm in (PPO(beta=beta), GRPO(beta=beta, kl="reward")):
        network = reinforced(
            model,
            algorithm,
            rewards,
            task,
            rounds=s.rlhf_rounds,
            reuse=2,
            samples=s.rlhf_samples,
            learning_rate=s.rlhf_rate,
            seed=s.seed,
        )
        name = type(algorithm).__name__
        trained[name], exact[name] = task.policy(network), ideal
    rules = {"Nash-MD": npf.NashMD(beta=s.beta, eta=1.0), "EGPO": npf.EGPO(beta=s.beta, eta=1.5)}
    for name, rule in rules.items():
        network, _ = play(
            model,
            rule,
            task,
            start,
            every=s.rounds,
            rounds=s.rounds,
            updates=s.updates,
            reuse=s.updates,
            samples=s.samples,
            batch_responses=s.batch_responses,
            learning_rate=s.learning_rate,
            warmup_steps=3 * s.updates,
            seed=s.seed,
        )
        trained[name] = task.policy(network)
        exact[name] = npf.solve(game, rule, s.rounds, reference=mu).policy
    return trained, exact


def best_fit(task: Task, mu: FloatArray) -> FloatArray:
    """The Bradley–Terry reward that fits the judge's word on pairs from μ best, `(B, n)`."""
    return np.stack(
        [
            fit_bradley_terry(np.outer(each, each) * task.matrix(prompt, task.responses)).scores
            for each, prompt in zip(mu, task.prompts, strict=True)
        ]
    )


def optimum(task: Task, mu: FloatArray, beta: float) -> FloatArray:
    """What RLHF and DPO aim at, `μ e^{r/β}` with that reward, `(B, n)`."""
    return np.stack([rlhf(r, beta, each) for r, each in zip(best_fit(task, mu), mu, strict=True)])


EXPERIMENT = Experiment(
    "DPO, RLHF and Nash methods on a language model, on a cycle and on a Bradley–Terry control",
    {
        "quick": Settings(
            prompts=2,
            length=2,
            width=16,
            sft_steps=25,
            pairs=200,
            dpo_steps=10,
            rlhf_rounds=5,
            rlhf_samples=16,
            rounds=4,
            updates=2,
            samples=32,
            batch_responses=16,
        ),
        "default": Settings(),
        "full": Settings(
            prompts=8,
            length=4,
            sft_steps=400,
            beta=0.05,
            pairs=40_000,
            dpo_steps=600,
            rlhf_rounds=600,
            rounds=120,
        ),
    },
    run,
    needs=("torch", "transformers", "accelerate"),
)
