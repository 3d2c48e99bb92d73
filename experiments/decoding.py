"""A frozen policy led by a reward at every token, next to policies that were trained: reward against cost.

A response is a plan, its first symbol, and what it makes of it. Under a *bold* plan a later symbol is worth
much if it fits and costs if it does not, under a *safe* plan it is worth little and costs nothing. The policy
fits by chance: on average safe plans do better, and the best response is bold. So methods part that otherwise
look alike. What the policy makes of a beginning on average (CD), or how often one beginning wins against
another (PARGS), speaks for safe plans, and its best completion (FaRMA) for bold ones; a reward model of whole
responses (ARGS) has never been asked about a plan.

All rewards are learned from the same pairs of the policy's responses, labelled with the probability that one
is preferred. What is shown is the true reward. Cost is counted in tokens put through a network, which all are
of one size; `make bench` measures seconds.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nashpref.experiments.common import Experiment, Table
from nashpref.experiments.network_methods import as_table
from nashpref.policies import FloatArray, IntArray

if TYPE_CHECKING:
    from torch import nn

    from nashpref.llm.data import Text
    from nashpref.llm.exact_task import Task
    from nashpref.llm.training import TrainConfig

SAFE = 0.2  # of what a bold plan is worth at best


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        prompts, symbols, length: of the task.
        strength: reward of the best response.
        width, sft_steps: of the policy.
        pairs: for all rewards and for DPO.
        steps, farma_steps, batch_size, learning_rate: of the optimizers; FaRMA's steps take turns.
        betas: weights of the KL, for each method that has one.
        top_k, min_p: candidates for the next token.
        candidates: n of best-of-n.
        entropy, tries: of CARDS.
        dpo_rate, ppo_rounds, ppo_samples, ppo_rate: of the trained policies.
        samples: responses to each prompt.
        seed: of everything.
    """

    prompts: int = 2
    symbols: int = 4
    length: int = 5
    strength: float = 4.0
    width: int = 64
    sft_steps: int = 150
    pairs: int = 6000
    steps: int = 300
    farma_steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 2e-3
    betas: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    top_k: int = 4
    min_p: float = 0.02
    candidates: tuple[int, ...] = (4, 16, 64)
    entropy: float = 1.3
    tries: int = 8
    dpo_rate: float = 5e-4
    ppo_rounds: int = 60
    ppo_samples: int = 64
    ppo_rate: float = 1e-3
    samples: int = 100
    seed: int = 0


def run(settings: Settings) -> Mapping[str, Table]:
    """`methods`: by `method` and `setting` (β, or n), the mean true `reward` and its standard `error`, the
    `win_rate` against the policy, and the `tokens` put through networks for a response. `training`: by `step`
    the mean of `|r(prefix) − max_v r(prefix, v)|`, over the mean deviation of rewards from their mean, of
    `FaRMA` and of a model with `L1` alone.
    """
    from nashpref.experiments.networks import fine_tuned, one_thread

    with one_thread():
        task, reward = plans(settings)
        model = fine_tuned(task, width=settings.width, steps=settings.sft_steps, seed=settings.seed)
        guides, training = learned(model, task, settings)
        rows = []
        reference: Sequence[Sequence[str]] = ()
        for method, setting, decode, networks in decoders(model, task, guides, settings):
            with counting(networks) as read:
                texts = decode()
            reference = reference or texts
            rows.append((method, setting, *judged(task, reward, texts, reference), read() / responses(texts)))
    names = ("method", "setting", "reward", "error", "win_rate", "tokens")
    return {"methods": as_table(names, rows), "training": training}


def plans(settings: Settings) -> tuple[Task, Callable[[Sequence[Text], Sequence[Text]], list[float]]]:
    """The task, and the true reward: `−strength/2` at worst, and for what is no response."""
    from nashpref.llm.environments import Task

    s, rng = settings, np.random.default_rng(settings.seed)
    fitting = rng.integers(s.symbols, size=(s.prompts, s.symbols))
    bold = rng.permuted(np.tile(np.arange(s.symbols) % 2 == 0, (s.prompts, 1)), axis=1)

    def worth(prompt: int, words: IntArray) -> FloatArray:
        first = words[:, 0]
        fits = (words[:, 1:] == fitting[prompt, first][:, None]).mean(axis=1)
        value = np.where(bold[prompt, first], 1.5 * fits - 0.5, SAFE * fits)
        return np.asarray(s.strength * np.where(first >= 0, value, -0.5))

    def points(prompt: int, words: IntArray) -> FloatArray:
        r = worth(prompt, words)
        return np.stack([r, np.ones_like(r)])[None, None]

    tilt = 0.3 * rng.standard_normal((s.prompts, s.length, s.symbols))
    task = Task(
        tuple(f"question {k}" for k in range(s.prompts)),
        tuple("abcdefghijklmnopqrstuvwxyz"[: s.symbols]),
        s.length,
        s.length,
        points,
        (1.0,),
        tilt,
    )
    symbols = {symbol: i for i, symbol in enumerate(task.alphabet)}

    def reward(prompts: Sequence[Text], responses: Sequence[Text]) -> list[float]:
        found = []
        for prompt, response in zip(prompts, responses, strict=True):
            word = [symbols.get(each, -1) for each in str(response).split()]
            valid = len(word) == s.length and min(word) >= 0
            k = task.prompts.index(str(prompt))
            found.append(float(worth(k, np.array([word if valid else [-1] * s.length]))[0]))
        return found

    return task, reward


class Guides(NamedTuple):
    """What has learned from the pairs."""

    full: Any
    partial: Any
    value: Any
    farma: Any


def learned(model: Any, task: Task, settings: Settings) -> tuple[Guides, Table]:
    """The four rewards, and the course of FaRMA's consistency."""
    import torch

    from nashpref.llm.decoding import (
        FarmaModel,
        FarmaPairs,
        PrefixValueModel,
        PrefixValues,
        Rewarded,
        collate_rewarded,
        prefix_pairs,
    )
    from nashpref.llm.encoding import Encoder, collate_pairs, encode_pairs
    from nashpref.llm.objectives import PreferencePairs
    from nashpref.llm.preferences import BradleyTerryModel
    from nashpref.llm.sampling import sample

    class L1(FarmaPairs):
        """It is never L2's turn."""

        def advance(self, metrics: Mapping[str, float]) -> dict[str, float]:
            return {}

    s, encoder = settings, Encoder(task.tokenizer)
    paired = partial(collate_pairs, pad_id=encoder.pad_id)
    pairs = encode_pairs(encoder, judged_pairs(model, task, s))
    full, part = (BradleyTerryModel.from_backbone(model, task.tokenizer) for _ in range(2))
    value = PrefixValueModel.from_backbone(model, task.tokenizer)
    farma, unchecked = (FarmaModel.from_backbone(model, task.tokenizer) for _ in range(2))
    minimise(PreferencePairs(full), pairs, paired, s.steps, s)
    minimise(PreferencePairs(part), prefix_pairs(pairs), paired, s.steps, s)
    generator = torch.Generator().manual_seed(s.seed)
    drawn = sample(
        model,
        encoder,
        task.prompts,
        s.pairs // s.prompts,
        max_new_tokens=task.max_new_tokens,
        generator=generator,
    )
    rewarded = [
        Rewarded(encoder.encode(prompt, text), r)
        for prompt, texts in zip(task.prompts, drawn.texts, strict=True)
        for text, r in zip(texts, full.rewards([prompt] * len(texts), texts).tolist(), strict=True)
    ]
    collator = partial(collate_rewarded, pad_id=encoder.pad_id)
    minimise(PrefixValues(value), rewarded, collator, s.steps, s)
    course = {}
    for name, objective in (("FaRMA", FarmaPairs), ("L1", L1)):
        network = farma if name == "FaRMA" else unchecked
        steps = s.farma_steps if name == "FaRMA" else s.farma_steps // 2  # as many of L1 in both
        log = minimise(objective(network, model, s.top_k, s.min_p), pairs, paired, steps, s)
        course[name] = np.array([row["inconsistency"] / row["deviation"] for row in log if "loss" in row])
    every = len(course["FaRMA"]) // len(course["L1"])
    table = {
        "step": 1 + np.arange(len(course["FaRMA"])),
        "FaRMA": course["FaRMA"],
        "L1": np.repeat(course["L1"], every)[: len(course["FaRMA"])],
    }
    return Guides(full, part, value, farma), table


def judged_pairs(model: nn.Module, task: Task, settings: Settings) -> list[Any]:
    """Pairs of the policy's responses, each with the probability that the first is preferred."""
    import torch

    from nashpref.llm.data import Pair
    from nashpref.llm.encoding import Encoder
    from nashpref.llm.sampling import sample

    generator = torch.Generator().manual_seed(settings.seed + 1)
    count = 2 * settings.pairs // len(task.prompts)
    drawn = sample(
        model,
        Encoder(task.tokenizer),
        task.prompts,
        count,
        max_new_tokens=task.max_new_tokens,
        generator=generator,
    )
    pairs = []
    for prompt, texts in zip(task.prompts, drawn.texts, strict=True):
        a, b = texts[: count // 2], texts[count // 2 :]
        labels = task([prompt] * len(a), a, b).tolist()
        pairs += [Pair(prompt, *each) for each in zip(a, b, labels, strict=True)]
    return pairs


def minimise(
    objective: nn.Module, rows: Sequence[Any], collator: Any, steps: int, settings: Settings
) -> list[dict[str, float]]:
    """`fit` that leaves nothing on disk; what was logged at every step."""
    from nashpref.llm.batching import LengthBuckets
    from nashpref.llm.training import TrainConfig, fit

    s = settings
    with tempfile.TemporaryDirectory() as folder:
        config: TrainConfig = TrainConfig(
            output=folder,
            max_steps=steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            seed=s.seed,
            log_every=1,
        )
        batches = LengthBuckets([len(row) for row in rows], s.batch_size, seed=s.seed)
        return fit(objective, rows, batches, collator, config)


Decoder = tuple[str, float, Callable[[], Sequence[Sequence[str]]], Sequence[Any]]


def guided_decoders(model: Any, task: Task, guides: Guides, settings: Settings) -> Iterator[Decoder]:
    """Those that ask at every token, likewise."""
    import torch

    from nashpref.llm.decoding import guided
    from nashpref.llm.encoding import Encoder

    s = settings

    def led(guide: Any, beta: float) -> list[list[str]]:
        return guided(
            model,
            Encoder(task.tokenizer),
            task.prompts,
            guide,
            beta=beta,
            top_k=s.top_k,
            min_p=s.min_p,
            max_new_tokens=task.max_new_tokens,
            count=s.samples,
            generator=torch.Generator().manual_seed(s.seed + 2),
        )

    names = {"ARGS": guides.full, "PARGS": guides.partial, "CD": guides.value, "FaRMA": guides.farma}
    for name, guide in names.items():
        for beta in s.betas:
            yield name, beta, partial(led, guide, beta), [model, guide]


def decoders(model: Any, task: Task, guides: Guides, settings: Settings) -> Iterator[Decoder]:
    """Of each method its name, its setting, what it says to every prompt, and the networks that it asks."""
    import torch

    from nashpref.experiments.networks import aligned
    from nashpref.llm.algorithms import PPO
    from nashpref.llm.decoding import best_of_n, cards
    from nashpref.llm.encoding import Encoder
    from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer
    from nashpref.llm.sampling import sample

    s, encoder, longest = settings, Encoder(task.tokenizer), task.max_new_tokens
    prompts = list(task.prompts)

    def drawn(policy: Any, count: int = s.samples) -> list[list[str]]:
        generator = torch.Generator().manual_seed(s.seed + 2)
        return sample(policy, encoder, prompts, count, max_new_tokens=longest, generator=generator).texts

    def best(n: int) -> list[list[str]]:
        groups = [each[i : i + n] for each in drawn(model, n * s.samples) for i in range(0, n * s.samples, n)]
        asked = [prompt for prompt in prompts for _ in range(s.samples)]
        texts = best_of_n(guides.full.rewards, asked, groups).texts
        return [texts[i : i + s.samples] for i in range(0, len(texts), s.samples)]

    def by_segments(beta: float) -> list[list[str]]:
        usual = drawn(model)
        rewards = np.stack(
            [guides.full.rewards([x] * s.samples, y).numpy() for x, y in zip(prompts, usual, strict=True)]
        )
        texts = cards(
            model,
            encoder,
            [prompt for prompt in prompts for _ in range(s.samples)],
            guides.full.rewards,
            goal=float(np.quantile(rewards, 0.95)),
            floor=float(rewards.mean()),
            beta=beta,
            entropy=s.entropy,
            max_new_tokens=longest,
            generator=torch.Generator().manual_seed(s.seed + 2),
            tries=s.tries,
        ).texts
        return [texts[i : i + s.samples] for i in range(0, len(texts), s.samples)]

    def reinforced(beta: float) -> Any:
        network = copy.deepcopy(model)
        with tempfile.TemporaryDirectory() as folder:
            config = RLHFConfig(
                output=folder,
                rounds=s.ppo_rounds,
                reuse=2,
                samples=s.ppo_samples,
                batch_size=len(prompts),
                max_new_tokens=longest,
                learning_rate=s.ppo_rate,
                seed=s.seed,
            )
            RLHFTrainer(network, PPO(beta=beta), guides.full, config, prompts, task.tokenizer).train(
                progress=False
            )
        return network

    yield "μ", 0.0, partial(drawn, model), [model]
    yield from guided_decoders(model, task, guides, s)
    for n in s.candidates:
        yield "best of n", float(n), partial(best, n), [model, guides.full]
    for beta in s.betas[:2]:  # the thresholds are what matters; stricter, only the tries run out
        yield "CARDS", beta, partial(by_segments, beta), [model, guides.full]
    pairs = judged_pairs(model, task, s)
    for beta in s.betas[: max(1, len(s.betas) - 2)]:  # smaller ones do not stay where the pairs are
        dpo = aligned(
            model, pairs, beta, task.tokenizer, steps=s.steps, learning_rate=s.dpo_rate, seed=s.seed
        )
        yield "DPO", beta, partial(drawn, dpo), [dpo]
        ppo = reinforced(beta)
        yield "PPO", beta, partial(drawn, ppo), [ppo]


@contextmanager
def counting(networks: Sequence[Any]) -> Iterator[Callable[[], int]]:
    """Within, tokens put through the networks are counted."""
    tokens = 0

    def count(embeddings: Any, arguments: tuple[Any, ...]) -> None:
        nonlocal tokens
        tokens += arguments[0].numel()

    with ExitStack() as stack:
        for network in networks:
            handle = network.base_model.get_input_embeddings().register_forward_pre_hook(count)
            stack.callback(handle.remove)
        yield lambda: tokens


def responses(texts: Sequence[Sequence[str]]) -> int:
    """How many there are."""
    return sum(map(len, texts))


def judged(
    task: Task,
    reward: Callable[[Sequence[Text], Sequence[Text]], list[float]],
    texts: Sequence[Sequence[str]],
    reference: Sequence[Sequence[str]],
) -> tuple[float, float, float]:
    """Mean true reward, its standard error (that of equally many samples for each prompt), and win-rate."""
    rewards = np.array(
        [reward([prompt] * len(each), each) for prompt, each in zip(task.prompts, texts, strict=True)]
    )
    error = np.sqrt((rewards.var(axis=1, ddof=1) / rewards.shape[1]).sum()) / len(rewards)
    return float(rewards.mean()), float(error), float(task.cross(task.prompts, texts, reference).mean())


EXPERIMENT = Experiment(
    "A frozen policy led by a reward (ARGS, PARGS, CD, CARDS, FaRMA, best of n) beside DPO and PPO",
    {
        "quick": Settings(
            width=16,
            sft_steps=15,
            pairs=200,
            steps=6,
            farma_steps=12,
            batch_size=32,
            betas=(1.0, 0.1),
            candidates=(4,),
            tries=3,
            ppo_rounds=2,
            ppo_samples=8,
            samples=10,
        ),
        "default": Settings(),
        "full": Settings(pairs=20_000, steps=1500, farma_steps=5000, ppo_rounds=300, samples=500),
    },
    run,
    needs=("torch", "transformers", "accelerate"),
)
