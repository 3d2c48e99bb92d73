"""MTPO, OMPO, MPO and RLHF on a language model that talks to a user, measured by the exact game of dialogues.

All start from one model. On `cycle`, whose dialogues are compared at their end and in a circle, MTPO and
MTPO-τ go to the regularised equilibrium, OMPO and MPO by their averages to that of the game itself. RLHF has
the Bradley–Terry reward that fits the judge best on μ's dialogues, DPO takes turns for single responses whose
dialogues μ goes on with; both aim elsewhere. DPO's gap is that of its policy given that it says words. RLHF
and DPO have 4β, which on a control with a reward of small range makes the same of all (`network_methods`).

On `cycles_at_every_turn` MTPO compares dialogues after every turn, or only at their end. The second cannot
bring the gap below the part that turns before the last have in μ's.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import nashpref as npf
from nashpref.bradley_terry import fit_bradley_terry
from nashpref.experiments.common import Experiment, Table
from nashpref.mirror import UpdateRule
from nashpref.policies import FloatArray

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from nashpref.llm.data import Pair, Text
    from nashpref.llm.exact_dialogue import DialogueTask
    from nashpref.llm.preferences.adapters import Preference

SLOPE = 4.0  # of log-odds over probability, at one half


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, turns, length: of both tasks, 3^length words in each turn.
        width, sft_steps: of the model.
        beta: β of the regularised game.
        eta, eta_mpo: the step of OMPO, and of MPO.
        regularised_rounds, rounds: of the rules with β, and of OMPO and MPO.
        updates, samples, batch_responses, lines, learning_rate: of `NashConfig`; a fit draws once.
        pairs, dpo_steps, dpo_rate: soft labels for DPO, and its optimizer.
        seed: of the model, the samples and everything else.
    """

    prompts: int = 2
    turns: int = 2
    length: int = 2
    width: int = 64
    sft_steps: int = 300
    beta: float = 0.1
    eta: float = 3.0
    eta_mpo: float = 2.0
    regularised_rounds: int = 40
    rounds: int = 60
    updates: int = 12
    samples: int = 32
    batch_responses: int = 32
    lines: int = 8
    learning_rate: float = 2e-3
    pairs: int = 4000
    dpo_steps: int = 200
    dpo_rate: float = 3e-4
    seed: int = 0


def run(settings: Settings) -> Mapping[str, Table]:
    """`gaps`: `gap` of the network and `exact` of the same rule in the exact core, by `task`, `method` and
    `round`, averaged over the prompts; regularised, or (OMPO, MPO) the average policy's in the game itself.
    """
    from nashpref.experiments.networks import fine_tuned, one_thread
    from nashpref.llm.dialogue_tasks import cycle, cycles_at_every_turn

    s = settings
    beta = s.beta
    rows: list[tuple[str, str, int, float, float]] = []
    with one_thread():
        task = cycle(s.prompts, s.turns, 3, s.length, seed=s.seed)
        start = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
        mu = task.policy(start)
        for name, rule in {
            "MTPO": npf.MTPO(beta=beta, eta=falling(beta)),
            "MTPO-τ": npf.MTPOTau(beta=beta, eta=falling(beta)),
        }.items():
            gaps = talk(start, rule, task, mu, s)
            rows += named("cycle", name, gaps, exact(task, rule, mu, s.regularised_rounds))
        for name, rule in {"OMPO": npf.OMPO(eta=s.eta), "MPO": npf.MPO(eta=s.eta_mpo)}.items():
            rows += named("cycle", name, talk(start, rule, task, mu, s), exact(task, rule, mu, s.rounds))
        preference, scale = best_fit(task, mu)
        rule = npf.MTPO(beta=SLOPE * beta * scale, eta=lambda t: falling(beta)(t) / (SLOPE * scale))
        rows += named("cycle", "RLHF", talk(start, rule, task, mu, s, preference=preference), ())
        rows += named("cycle", "DPO", [task.gap(mu, beta, mu).mean(), direct(start, task, mu, s)], ())

        task = cycles_at_every_turn(s.prompts, s.turns, 3, s.length, seed=s.seed)
        start = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
        mu = task.policy(start)
        rule = npf.MTPO(beta=beta, eta=falling(beta))
        whole = exact(task, rule, mu, s.regularised_rounds)
        rows += named("every turn", "compared after every turn", talk(start, rule, task, mu, s), whole)
        end = dataclasses.replace(task, every_turn=False)
        bound = [before_the_last(task, mu, beta)] * (s.regularised_rounds + 1)
        gaps = talk(start, rule, task, mu, s, preference=end, every_turn=False)
        rows += named("every turn", "compared at the end", gaps, bound)
    columns = ("task", "method", "round", "gap", "exact")
    return {
        "gaps": {name: np.array(each) for name, each in zip(columns, zip(*rows, strict=True), strict=True)}
    }


def falling(beta: float) -> Callable[[int], float]:
    """`min(1, 2/(β(t + 2)))`: the theorem's step, but no longer than a network follows."""
    return lambda t: min(1.0, 2.0 / (beta * (t + 2)))


def named(
    task: str, method: str, gaps: Sequence[float], exact: Sequence[float]
) -> list[tuple[str, str, int, float, float]]:
    """Rows of the table; `exact` may be missing."""
    beside = [*exact, *[np.nan] * (len(gaps) - len(exact))]
    return [(task, method, t, gap, beside[t]) for t, gap in enumerate(gaps)]


def talk(
    model: nn.Module,
    rule: UpdateRule,
    task: DialogueTask,
    mu: list[FloatArray],
    settings: Settings,
    *,
    preference: Preference | None = None,
    every_turn: bool | None = None,
) -> list[float]:
    """The gap at the start and after every round, of a copy that is trained by a rule.

    Args:
        model: where training starts.
        rule: with β > 0 it is the policy that is measured, in the regularised game; else the average, in the
            game itself.
        task: whom it talks to, and by what game it is measured.
        mu: what the model does at the start, in that game.
        settings: of the training.
        preference: what it is trained on, in place of the task.
        every_turn: when it is asked, in place of the task's own.
    """
    from nashpref.llm.nash import NashConfig, NashTrainer

    s, model = settings, copy.deepcopy(model)
    averaged = getattr(rule, "beta", 0.0) == 0.0
    policies = [mu]
    gaps = [float(gap_of(task, policies, averaged, mu, s.beta))]

    def measure(policy: nn.Module) -> dict[str, float]:
        policies.append(task.policy(policy))
        gaps.append(float(gap_of(task, policies, averaged, mu, s.beta)))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        args = NashConfig(
            output=folder,
            rounds=s.rounds if averaged else s.regularised_rounds,
            updates=s.updates,
            reuse=s.updates,
            samples=s.samples,
            batch_responses=s.batch_responses,
            lines=s.lines,
            every_turn=task.every_turn if every_turn is None else every_turn,
            batch_size=len(task.prompts),
            max_new_tokens=task.max_new_tokens,
            learning_rate=s.learning_rate,
            schedule="constant" if averaged else "linear",  # averaged iterates go on moving to the end
            eval_every=s.updates,
            seed=s.seed,
        )
        trainer = NashTrainer(
            model,
            rule,
            preference or task,
            args,
            list(task.prompts),
            task.tokenizer,
            environment=task,
            compute_metrics=measure,
        )
        trainer.train(progress=False)
    return gaps


def gap_of(
    task: DialogueTask, policies: list[list[FloatArray]], averaged: bool, mu: list[FloatArray], beta: float
) -> float:
    """Of the average in the game itself, or of the last one in the regularised game."""
    found = task.gap(task.average(policies)) if averaged else task.gap(policies[-1], beta, mu)
    return float(found.mean())


def exact(task: DialogueTask, rule: UpdateRule, mu: list[FloatArray], rounds: int) -> list[float]:
    """The same gaps of the same rule by `nashpref.solve`."""
    traces = [
        npf.solve(game, rule, rounds, reference=each) for game, each in zip(task.games, mu, strict=True)
    ]
    averaged = getattr(rule, "beta", 0.0) == 0.0
    gaps = [trace.average_gap if averaged else trace.gap for trace in traces]
    return list(np.mean(gaps, axis=0).tolist())


def best_fit(task: DialogueTask, mu: list[FloatArray]) -> tuple[Preference, float]:
    """RLHF's game for the Bradley–Terry reward that fits the judge best on μ's dialogues, and its scale.

    What ends a dialogue early gets 2 less than the worst that goes on to its end.
    """
    from nashpref.llm.preferences.adapters import from_linear_reward

    rewards = []
    for game, policy in zip(task.games, mu, strict=True):
        final = game.forward(
            game.horizon - 1, game.plan(game.flat(policy))[:, game.layers[-1]].reshape(1, -1)
        )
        weight = final[0, :-1] / final[0, :-1].sum()
        P = game.payoffs[0][:-1, :-1] + 0.5
        r = fit_bradley_terry(np.outer(weight, weight) * P).scores
        rewards.append(np.append(r, r.min() - 2.0))
    scale = 0.5 / max(float(np.ptp(each)) for each in rewards)

    def reward(prompts: Sequence[Text], dialogues: Sequence[Text]) -> list[float]:
        places, _ = task.places(dialogues)
        return [
            float(rewards[task.number(prompt)][place]) for prompt, place in zip(prompts, places, strict=True)
        ]

    return from_linear_reward(reward, scale), scale


def direct(model: PreTrainedModel, task: DialogueTask, mu: list[FloatArray], settings: Settings) -> float:
    """The regularised gap after DPO on single turns: two words, each of which μ goes on from to the end.

    Of the policy given that it says words at all, see `saying_words`.
    """
    from nashpref.experiments.networks import aligned

    s = settings
    trained = aligned(
        model,
        pairs(task, mu, np.random.default_rng(s.seed), s.pairs),
        SLOPE * s.beta,
        task.tokenizer,
        steps=s.dpo_steps,
        learning_rate=s.dpo_rate,
        seed=s.seed,
    )
    policy = [saying_words(*each) for each in zip(task.policy(trained), mu, strict=True)]
    return float(task.gap(policy, s.beta, mu).mean())


def saying_words(policy: FloatArray, mu: FloatArray) -> FloatArray:
    """The policy given that it says a word, which it does as often as μ: DPO sees nothing else, and leaks."""
    valid = policy[..., :-1] / policy[..., :-1].sum(axis=-1, keepdims=True)
    return np.concatenate([valid * (1.0 - mu[..., -1:]), mu[..., -1:]], axis=-1)


def pairs(task: DialogueTask, mu: list[FloatArray], rng: np.random.Generator, count: int) -> list[Pair]:
    """Prompts and turns in turn: μ's dialogue up to there, two words of μ, and how likely the first wins."""
    from nashpref.llm.data import Pair

    words, found = task.words, list[Pair]()
    while len(found) < count:
        k, h = len(found) % len(task.prompts), len(found) // len(task.prompts) % task.turns
        past = spoken(task, mu[k], k, (), h, rng)
        state = task.state(past)
        a, b = (
            int(i) for i in rng.choice(len(words), 2, p=mu[k][h, state, :-1] / mu[k][h, state, :-1].sum())
        )
        ends = [
            task.dialogue(k, spoken(task, mu[k], k, (*past, word), task.turns, rng))[1:] for word in (a, b)
        ]
        p = float(task([task.prompts[k]], [ends[0]], [ends[1]])[0])
        found.append(Pair(task.dialogue(k, past), words[a], words[b], p))
    return found


def spoken(
    task: DialogueTask,
    policy: FloatArray,
    k: int,
    past: tuple[int, ...],
    turns: int,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """Words and lines of a dialogue that goes on from `past`: until so many words, and the line after them
    unless they are all."""
    while len(past) < 2 * turns - (turns == task.turns):
        h = len(past) // 2
        p = task.user[k, h, past[-1]] if len(past) % 2 else policy[h, task.state(past), :-1]
        past = (*past, int(rng.choice(len(p), p=p / p.sum())))
    return past


def before_the_last(task: DialogueTask, mu: list[FloatArray], beta: float) -> float:
    """What the turns before the last add to the regularised gap while they are as in μ.

    The games of the turns are separate, and so it is the gap of a policy whose last turn is at equilibrium.
    """
    gaps = []
    for game, policy in zip(task.games, mu, strict=True):
        better = policy.copy()
        better[-1] = npf.equilibrium(game, beta=beta, reference=policy).policy[-1]
        gaps.append(float(npf.duality_gap(game, better, beta=beta, reference=policy)))
    return float(np.mean(gaps))


EXPERIMENT = Experiment(
    "MTPO, OMPO, MPO, RLHF and DPO on a language model in dialogues, by their exact game",
    {
        "quick": Settings(
            prompts=1,
            length=1,
            width=16,
            sft_steps=40,
            regularised_rounds=3,
            rounds=3,
            updates=2,
            samples=8,
            batch_responses=8,
            lines=2,
            pairs=40,
            dpo_steps=5,
        ),
        "default": Settings(),
        "full": Settings(prompts=4, regularised_rounds=80, rounds=120, samples=64, batch_responses=64),
    },
    run,
    needs=("torch", "transformers", "accelerate"),
)
