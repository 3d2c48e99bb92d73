"""Training on a policy's own responses, against a loop written by hand and against TRL; what policies cost.

The floor is what a careful researcher writes for Nash-MD on this very workload: prompts of one length, read
once and never padded, a cache for each model, every response scored once. It stops, resumes and evaluates
nothing, and knows no other rule.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import profile
from transformers import DynamicCache, PrinterCallback

import nashpref as npf
from benchmarks.harness import Measured, Pairs, Row, in_fresh_process, interleave, row, seconds, timed
from benchmarks.llm import (
    LEARNING_RATE,
    PAIRS,
    PROMPT,
    RESPONSE,
    After,
    Stepped,
    Workload,
    in_turns,
    mib,
    resident_at_most,
    workload,
)
from nashpref.llm.algorithms import GRPO, RLOO, Algorithm
from nashpref.llm.inputs import Lora
from nashpref.llm.interpreter import OPPONENTS, OWN, Estimator
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.policies import Store
from nashpref.llm.preferences.models import GeneralPreferenceModel, PairwisePreferenceModel
from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer
from nashpref.mirror import UpdateRule

BETA, ETA, SAMPLES = 0.1, 1.0, 2  # of Nash-MD, and K
ONE = npf.GDA(beta=BETA, eta=ETA)
THREE = {
    "OGDA": npf.OGDA(beta=BETA, eta=ETA),
    "Nash-EMA": npf.NashEMA(beta=BETA, eta=ETA),
    "EGPO": npf.EGPO(beta=BETA, eta=ETA),
}
RESPONSES = (8, 16, 32)  # K of the K×K matrices


def rows() -> Iterator[Row]:
    """Nash-MD, RLHF, matrices, snapshots; each in a process of its own."""
    estimators: tuple[Estimator, ...] = ("policy_gradient", "regression")
    for estimator in estimators:
        title = f"loss of the hand-written Nash-MD on the same samples, {estimator}: largest difference"
        yield row(title, "≤ 1e-3", "of the mean loss", in_fresh_process, agreement, estimator)
    for estimator in estimators:
        title = f"CPU time of a step of Nash-MD over one written by hand, two caches in both, {estimator}"
        yield row(title, "≤ 1.15", "×", in_fresh_process, nash_md, estimator)
    for name in ("GRPO", "RLOO"):
        title = f"CPU time of a step of {name} over TRL's"
        yield row(title, "≤ 1", "×", in_fresh_process, rlhf, name)
    for kind, of, target in (
        ("general", "matrix", "≤ 1.1"),
        ("general", "cross", "≤ 1.1"),
        ("pairwise", "matrix", None),
    ):
        title = f"time of the {kind} model's `{of}` of K×K grows as K to the power of"
        yield row(title, target, "", in_fresh_process, growth, kind, of)
    title = "model and policies kept by the rule that keeps most, over those of GDA, under LoRA"
    yield row(title, "≤ 1.2", "×", snapshots)
    title = "memory allocated when a policy takes its place in the network"
    yield row(title, "≤ 0", "bytes", in_fresh_process, swap)


class Circle:
    """A preference without a best response, and as cheap as can be: responses are points on a circle."""

    def __call__(self, prompts: Sequence[Any], a: Sequence[Any], b: Sequence[Any]) -> Tensor:
        """A quarter turn ahead wins."""
        return 0.5 + 0.5 * torch.sin(_angles(a) - _angles(b))

    def cross(self, prompts: Sequence[Any], a: Sequence[Sequence[Any]], b: Sequence[Sequence[Any]]) -> Tensor:
        """All pairs of each prompt."""
        ours, theirs = (torch.stack([_angles(each) for each in side]) for side in (a, b))
        return 0.5 + 0.5 * torch.sin(ours[:, :, None] - theirs[:, None])

    def matrix(self, prompt: Any, responses: Sequence[Any]) -> Any:
        """K×K."""
        return self.cross([prompt], [responses], [responses])[0].numpy()


def _angles(texts: Sequence[str]) -> Tensor:
    return torch.tensor([crc32(text.encode()) / 2**32 for text in texts], dtype=torch.float64) * 2.0 * np.pi


def points(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward of the same kind, with the signature of both libraries."""
    return torch.sin(_angles(completions)).tolist()


# --- Nash-MD ---


@contextmanager
def nash_trainer(work: Workload, rule: UpdateRule, **options: Any) -> Iterator[NashTrainer]:
    """Ours, on the workload."""
    with tempfile.TemporaryDirectory() as output:
        config = dict(
            output=output,
            batch_size=PAIRS,
            samples=SAMPLES,
            max_new_tokens=RESPONSE,
            learning_rate=LEARNING_RATE,
            schedule="constant",
        )
        metrics = options.pop("compute_metrics", None)
        prompts = [pair["prompt"] for pair in work.pairs]
        yield NashTrainer(
            work.model(),
            rule,
            Circle(),
            NashConfig(**(config | options)),
            prompts,
            work.tokenizer(),
            compute_metrics=metrics,
        )


def nash_loop(work: Workload, steps: int, estimator: Estimator, stepped: Stepped) -> None:
    """A round for every step."""

    def metrics(_: nn.Module) -> dict[str, float]:
        stepped()
        return {}

    rule = npf.NashMD(beta=BETA, eta=ETA)
    with nash_trainer(
        work, rule, rounds=steps, estimator=estimator, eval_every=1, compute_metrics=metrics
    ) as trainer:
        trainer.train(progress=False)


def hand_loop(work: Workload, steps: int, estimator: Estimator, stepped: Stepped) -> None:
    """The floor."""
    model, tokenizer = work.model(), work.tokenizer()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    prompts = tokenizer([pair["prompt"] for pair in work.pairs], return_tensors="pt").input_ids
    for _ in range(steps):
        batch = prompts[torch.randperm(len(prompts))[:PAIRS]]
        ours = decode([model], [1.0], batch, tokenizer)
        theirs = decode([model, reference], [1.0 - ETA * BETA, ETA * BETA], batch, tokenizer)
        texts = [
            [each[start : start + SAMPLES] for start in range(0, len(each), SAMPLES)]
            for each in (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (ours, theirs))
        ]
        rates = Circle().cross((), *texts)
        sequences = torch.cat([batch.repeat_interleave(SAMPLES, dim=0), ours], dim=1)
        ended = (ours == tokenizer.eos_token_id).long()
        said = ended.cumsum(dim=1) - ended == 0
        loss = hand_loss(model, reference, sequences, said, rates.mean(dim=2) - 0.5, estimator).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        stepped()


@torch.no_grad()
def decode(models: Sequence[Any], weights: Sequence[float], prompts: Tensor, tokenizer: Any) -> Tensor:
    """SAMPLES responses to every prompt, from the geometric mixture of the models."""
    caches = [DynamicCache(config=model.config) for model in models]

    def read(ids: Tensor) -> list[Tensor]:
        return [
            model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            for model, cache in zip(models, caches, strict=True)
        ]

    logits = [each.repeat_interleave(SAMPLES, dim=0) for each in read(prompts)]
    for cache in caches:
        cache.batch_repeat_interleave(SAMPLES)
    done, drawn = torch.zeros(len(logits[0]), 1, dtype=torch.bool), []
    while True:
        mixed = sum(weight * each for weight, each in zip(weights, logits, strict=True))
        token = torch.multinomial(torch.softmax(mixed, dim=-1), 1)
        drawn.append(token.masked_fill(done, tokenizer.pad_token_id))
        done |= token == tokenizer.eos_token_id
        if len(drawn) == RESPONSE or done.all():
            return torch.cat(drawn, dim=1)
        logits = read(drawn[-1])


def hand_loss(
    model: Any, reference: Any, sequences: Tensor, said: Tensor, payoff: Tensor, estimator: Estimator
) -> Tensor:
    """Of each prompt, from its responses, the mask of their tokens, and `P(y ≻ mixture) − 1/2`."""

    def logps(network: Any) -> Tensor:
        predicted = network(sequences, logits_to_keep=said.shape[1] + 1, use_cache=False).logits[:, :-1]
        targets = sequences[:, -said.shape[1] :, None]
        each = torch.log_softmax(predicted, dim=-1).gather(2, targets).squeeze(2)
        return (each * said).sum(dim=1).view(-1, SAMPLES)

    current = logps(model)
    with torch.no_grad():
        step = ETA * (payoff - BETA * (current - logps(reference))).float()
    if estimator == "policy_gradient":
        advantage = (step - step.mean(dim=1, keepdim=True)) * (SAMPLES / (SAMPLES - 1))
        return -(advantage * current).mean(dim=1)
    residual = current - (current.detach() + step)
    return (residual - residual.mean(dim=1, keepdim=True)).square().mean(dim=1)


def nash_md(estimator: Estimator, steps: int = 7) -> Measured:
    """From the end of a step to the end of the next, in turns."""
    with workload() as work:
        pairs = in_turns(
            partial(nash_loop, work, steps, estimator), partial(hand_loop, work, steps, estimator)
        )
    return pairs.slowdown, f"{pairs}, {len(pairs.ours)} pairs; {rate(pairs, 2)}"


def rate(pairs: Pairs, policies: int) -> str:
    """Tokens drawn from so many policies in each second of whole steps."""
    tokens = policies * PAIRS * SAMPLES * RESPONSE
    ours, peer = (tokens / np.median(times) for times in (pairs.ours, pairs.peer))
    return f"{ours:.0f} response tokens a second against {peer:.0f}"


def agreement(estimator: Estimator) -> Measured:
    """After steps that are large enough for the policy to have left the reference."""
    rule = npf.NashMD(beta=BETA, eta=ETA)
    with (
        workload(layers=2) as work,
        nash_trainer(work, rule, rounds=3, estimator=estimator, learning_rate=1e-3) as trainer,
    ):
        trainer.train(progress=False)
        objective, space, prompts = trainer.objective, trainer.space, trainer.prompts[:PAIRS]
        ours = objective(prompts)["loss"].detach()
        own = objective.policy("current") if estimator == "regression" else None
        regression = estimator == "regression"
        draws = space.draw(own, prompts, objective.taken, OWN, systematic=regression)
        other = space.draw(objective.policy("mixture"), prompts, objective.taken, OPPONENTS, systematic=True)
        rates = Circle().cross((), draws.responses.texts, other.responses.texts)
        tokens, payoff = draws.responses.tokens, rates.mean(dim=2) - 0.5
        said = tokens.completion_mask[:, PROMPT:]
        theirs = hand_loss(trainer.model, work.model(), tokens.input_ids, said, payoff, estimator).detach()
    error = float((ours - theirs).abs().max() / theirs.abs().mean())
    return error, f"{ours.mean():.6f} against {theirs.mean():.6f} in the mean of {len(ours)} prompts"


# --- RLHF ---


def rlhf(name: str, steps: int = 7) -> Measured:
    """Without gradient checkpointing, under which TRL would generate without a cache."""
    algorithm = {"GRPO": GRPO(beta=BETA), "RLOO": RLOO(beta=BETA)}[name]
    with workload() as work:
        pairs = in_turns(partial(rlhf_loop, work, steps, algorithm), partial(trl_loop, work, steps, name))
    return pairs.slowdown, f"{pairs}, {len(pairs.ours)} pairs, K = {SAMPLES}; {rate(pairs, 1)}"


def rlhf_loop(work: Workload, steps: int, algorithm: Algorithm, stepped: Stepped) -> None:
    """Ours."""

    def metrics(_: nn.Module) -> dict[str, float]:
        stepped()
        return {}

    with tempfile.TemporaryDirectory() as output:
        config = RLHFConfig(
            output=output,
            rounds=steps,
            batch_size=PAIRS,
            samples=SAMPLES,
            max_new_tokens=RESPONSE,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            eval_every=1,
        )
        prompts = [pair["prompt"] for pair in work.pairs]
        RLHFTrainer(
            work.model(), algorithm, points, config, prompts, work.tokenizer(), compute_metrics=metrics
        ).train(progress=False)


def trl_loop(work: Workload, steps: int, name: str, stepped: Stepped) -> None:
    """TRL's, with the same reward, β, group and loss; it loads its reference from the model's folder."""
    import trl
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    warnings.simplefilter("ignore")  # its own deprecated options
    options = {"loss_type": "grpo"} if name == "GRPO" else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = getattr(trl, f"{name}Config")(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PAIRS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=RESPONSE,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            beta=BETA,
            max_steps=steps,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **options,
        )
        trainer = getattr(trl, f"{name}Trainer")(
            model=work.folder,
            reward_funcs=points,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": pair["prompt"]} for pair in work.pairs]),
            processing_class=work.tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(After(stepped))
        trainer.train()


# --- matrices ---


def growth(kind: str, of: str) -> Measured:
    """The slope of log time over log K; the shortest of three times, taken in turns."""
    with workload() as work:
        models = {"general": GeneralPreferenceModel, "pairwise": PairwisePreferenceModel}
        model: Any = models[kind].from_backbone(work.model(), work.tokenizer())
        prompt = work.pairs[0]["prompt"]
        first, second = ([pair[side] for pair in work.pairs] for side in ("chosen", "rejected"))
    asked: dict[int, Callable[[], Any]] = {
        K: partial(model.matrix, prompt, first[:K])
        if of == "matrix"
        else partial(model.cross, [prompt], [first[:K]], [second[:K]])
        for K in RESPONSES
    }
    asked[RESPONSES[0]]()
    repeats = 3 if kind == "general" else 1
    times = np.min([[timed(ask)[0] for ask in asked.values()] for _ in range(repeats)], axis=0)
    slope = np.polyfit(np.log(RESPONSES), np.log(times), 1)[0]
    return float(slope), f"{', '.join(map(seconds, times))} for K = {', '.join(map(str, RESPONSES))}"


# --- snapshots ---


class Kept(NamedTuple):
    """Bytes of the model and of the policies beside it, and of the whole process at its peak."""

    model: int
    policies: int
    peak: int


def snapshots() -> Measured:
    """Exact bytes of the tensors there are after three rounds."""
    one = in_fresh_process(kept, ONE)
    three = {name: in_fresh_process(kept, rule) for name, rule in THREE.items()}
    name, most = max(three.items(), key=lambda item: item[1].policies)
    value = (most.model + most.policies) / (one.model + one.policies)
    return value, (
        f"{name}: {mib(most.policies)} of policies beside {mib(most.model)}, GDA {mib(one.policies)}; "
        f"whole processes {mib(most.peak)} against {mib(one.peak)} at their peak"
    )


def kept(rule: UpdateRule) -> Kept:
    """Every tensor counts once, whatever it is called."""
    with workload() as work, nash_trainer(work, rule, rounds=3, max_new_tokens=4, lora=Lora()) as trainer:
        trainer.train(progress=False)
        tensors = trainer.objective.state()[0].values()
        return Kept(
            sum(p.nbytes for p in trainer.model.parameters()),
            sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()),
            resident_at_most(),
        )


def swap() -> Measured:
    """Two pointers for each tensor, there and back."""
    with workload() as work:
        store = Store(work.model())
    policy = store.take()

    def loaded() -> None:
        with store.loaded(policy):
            pass

    with profile(profile_memory=True) as memory:
        loaded()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in memory.events())
    pairs = interleave(loaded, store.take)
    size = sum(tensor.nbytes for tensor in policy.tensors or ())
    return allocated, f"{pairs} for a copy of its {mib(size)}"
