"""Losses and log-probabilities against TRL: the same numbers, the CPU time of a DPO step, its peak memory."""

from __future__ import annotations

import copy
import itertools
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, TrainerCallback

from benchmarks.harness import Measured, Pairs, Row, in_fresh_process, row, seconds
from nashpref.llm import losses
from nashpref.llm.encoding import Tokens
from nashpref.llm.logprobs import Reference, completion_logps
from nashpref.llm.playground import SPECIAL, tiny_tokenizer
from nashpref.llm.shared_prompt import pair_logps

BETA, LEARNING_RATE, PAIRS, PROMPT, RESPONSE = 0.1, 1e-4, 16, 32, 64
LARGE = 50_000

Step = Callable[[], float]  # one optimizer step; its loss


def rows() -> Iterator[Row]:
    """Agreement, then time, then memory. Each in a process of its own: TRL patches the models it is given."""
    for name in ("sigmoid", "ipo"):
        title = f"loss of TRL's `{name}` on the same batch, weights and β: largest difference"
        yield row(title, "≤ 1e-5", "", in_fresh_process, agreement, name)
    for shared, precomputed in itertools.product((True, False), repeat=2):
        how = "precomputed" if precomputed else "computed in the step"
        how += "" if shared else "; each row with a prompt of its own"
        title = f"CPU time of a DPO step against TRL's, reference {how}"
        yield row(title, "≤ 1", "×", in_fresh_process, speed, precomputed, shared)
    yield row("peak memory of DPO with 50k tokens against TRL's default", "≤ 0.6", "×", memory)


# --- the workload ---


def workload(vocabulary: int = 512, layers: int = 4) -> tuple[PreTrainedModel, Any, list[dict[str, str]]]:
    """A Llama of the given vocabulary, its tokenizer, and 64 pairs of exactly PROMPT + RESPONSE tokens."""
    torch.set_num_threads(1)
    words = [f"w{i}" for i in range(vocabulary - len(SPECIAL))]
    tokenizer = tiny_tokenizer(words)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    rng = random.Random(0)

    def text(length: int) -> str:
        return " ".join(rng.choices(words, k=length))

    pairs = [
        {
            "prompt": text(PROMPT),
            "chosen": " " + text(RESPONSE - 1) + " <eos>",
            "rejected": " " + text(RESPONSE - 1) + " <eos>",
        }
        for _ in range(4 * PAIRS)
    ]
    return AutoModelForCausalLM.from_config(config), tokenizer, pairs


def batch(tokenizer: Any, pairs: list[dict[str, str]]) -> Tokens:
    """The first PAIRS pairs: chosen, then rejected."""
    texts = [pair["prompt"] + pair[side] for side in ("chosen", "rejected") for pair in pairs[:PAIRS]]
    ids = torch.tensor(tokenizer(texts)["input_ids"])
    completion = torch.zeros_like(ids)
    completion[:, PROMPT:] = 1
    return Tokens(ids, torch.ones_like(ids), completion)


def dpo_step(model: PreTrainedModel, tokens: Tokens, *, precomputed: bool, shared: bool = False) -> Step:
    """Ours: a plain loop's body with AdamW. Swap this for another to measure another loop.

    With `shared` the prompt of a pair passes through the models once.
    """
    model.train()
    score = pair_logps if shared else completion_logps
    reference = Reference(model, score)
    known = reference(tokens) if precomputed else None
    if precomputed:
        del reference
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        of_reference: Tensor = known if known is not None else reference(tokens)
        logps = score(model, tokens)
        loss = losses.dpo(*logps.chunk(2), *of_reference.chunk(2), beta=BETA).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


@contextmanager
def trl_trainer(
    model: PreTrainedModel,
    tokenizer: Any,
    pairs: list[dict[str, str]],
    *,
    reference: PreTrainedModel | None = None,
    callbacks: list[TrainerCallback] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """TRL's trainer with its defaults, but for float32 and what a CPU needs."""
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PAIRS,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            beta=BETA,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **options,
        )
        yield DPOTrainer(
            model=model,
            ref_model=None if options.get("precompute_ref_log_probs") else reference or copy.deepcopy(model),
            args=arguments,
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
            callbacks=callbacks,
        )


# --- agreement ---


def agreement(name: str) -> Measured:
    """The policy is the reference with noise on its weights, so that no log-ratio is zero."""
    model, tokenizer, pairs = workload(layers=2)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    with trl_trainer(model, tokenizer, pairs, reference=reference, loss_type=[name]) as trainer:
        inputs = next(iter(trainer.get_train_dataloader()))
        theirs = float(trainer.compute_loss(trainer.model, inputs))
    tokens = Tokens(*(inputs[name] for name in Tokens._fields))
    logps, of_reference = completion_logps(model, tokens), Reference(reference)(tokens)
    if name == "sigmoid":
        ours = losses.dpo(*logps.chunk(2), *of_reference.chunk(2), beta=BETA)
    else:  # TRL's IPO takes means over tokens
        lengths = tokens.completion_mask.sum(dim=1)
        ours = losses.ipo(*(logps / lengths).chunk(2), *(of_reference / lengths).chunk(2), beta=BETA)
    gap = (logps - of_reference).abs().mean().item()
    return abs(ours.mean().item() - theirs), f"{ours.mean():.6f} against {theirs:.6f}; |log-ratio| {gap:.2g}"


# --- time ---


class Interleaved(TrainerCallback):
    """Times the trainer's steps, and one of ours after each; the first of either is dropped."""

    def __init__(self, ours: Step) -> None:
        self.ours_step = ours
        self.ours: list[float] = []
        self.peer: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.peer.append(process_time() - self.began)
        began = process_time()
        self.ours_step()
        self.ours.append(process_time() - began)

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.ours[1:], self.peer[1:], (None, None))


def speed(precomputed: bool, shared: bool, steps: int = 8) -> Measured:
    """Median of ours/TRL's over interleaved steps: forward, backward, clipping, AdamW; not the data."""
    model, tokenizer, pairs = workload()
    tokens = batch(tokenizer, pairs)
    ours = dpo_step(copy.deepcopy(model), tokens, precomputed=precomputed, shared=shared)
    timer = Interleaved(ours)
    with trl_trainer(
        model,
        tokenizer,
        pairs,
        callbacks=[timer],
        max_steps=steps,
        precompute_ref_log_probs=precomputed,
    ) as trainer:
        trainer.train()
    return timer.pairs.slowdown, f"{timer.pairs}, {steps - 1} pairs"


# --- memory ---


def memory() -> Measured:
    """Whole processes, imports and all; the note has what the steps add to the model before them."""
    (ours, our_note), (theirs, their_note) = (in_fresh_process(measure) for measure in (our_peak, trl_peak))
    return ours / theirs, f"{our_note} against {their_note}"


def our_peak() -> Measured:
    """Two steps, the reference computed in each."""
    model, tokenizer, pairs = workload(LARGE)
    return peak(dpo_step(model, batch(tokenizer, pairs), precomputed=False))


def trl_peak() -> Measured:
    """Two steps of TRL's trainer."""
    model, tokenizer, pairs = workload(LARGE)
    with trl_trainer(model, tokenizer, pairs, max_steps=1) as trainer:
        return peak(trainer.train)


def peak(step: Callable[[], Any]) -> Measured:
    """Bytes at the highest, after two steps."""
    before = resident("VmRSS")
    began = process_time()
    step()
    step()
    highest = resident("VmHWM")
    mib = 2**20
    used = f"{(highest - before) / mib:.0f} above the model, {seconds(process_time() - began)}"
    return highest, f"{highest / mib:.0f} MiB ({used})"


def resident(field: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
