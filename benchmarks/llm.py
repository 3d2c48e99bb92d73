"""DPO against TRL (losses, CPU time, memory) and the floor below; what a matrix of preferences costs."""

from __future__ import annotations

import copy
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Semaphore
from time import thread_time
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging

from benchmarks.harness import Measured, Pairs, Row, in_fresh_process, interleave, row
from nashpref.llm import losses
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.data import Pair
from nashpref.llm.encoding import Encoder, Tokens, collate_pairs, encode_pairs
from nashpref.llm.inputs import DataConfig, ModelConfig
from nashpref.llm.logprobs import completion_logps, reference_logps
from nashpref.llm.methods import DPO
from nashpref.llm.playground import SPECIAL, tiny_tokenizer
from nashpref.llm.preferences.models import GeneralPreferenceModel, PairwisePreferenceModel
from nashpref.llm.shared_prompt import pair_logps
from nashpref.llm.training import TrainConfig, fit, make_accelerator

BETA, LEARNING_RATE, PAIRS, PROMPT, RESPONSE = 0.1, 1e-4, 16, 32, 64
SMALL, LARGE = 512, 50_000  # tokens in the vocabulary
RESPONSES = 16  # K of the K×K matrix


def rows() -> Iterator[Row]:
    """Agreement, time, memory, matrices. Each in a process of its own: TRL patches the models it is given."""
    for name in ("sigmoid", "ipo"):
        title = f"loss of TRL's `{name}` on the same batch, weights and β: largest difference"
        yield row(title, "≤ 1e-5", "", in_fresh_process, agreement, name)
    for reference, how in (("precomputed", "precomputed"), ("copy", "computed in every step")):
        title = f"CPU time of a step of DPO's loop over TRL's, reference {how}"
        yield row(title, "≤ 1", "×", in_fresh_process, speed, reference)
    title = "log-probabilities forward and backward over the bare backbone and head"
    yield row(title, "≤ 1.15", "×", in_fresh_process, over_floor)
    title = f"the same of pairs that share their prompt, {PROMPT} of {PROMPT + RESPONSE} tokens"
    yield row(title, "≤ 1", "×", in_fresh_process, over_floor, True)
    title = f"peak memory of DPO's loop with {LARGE // 1000}k tokens over TRL's default"
    yield row(title, "≤ 0.6", "×", memory)
    title = f"time of the pairwise model's {RESPONSES}×{RESPONSES} matrix over the general model's"
    yield row(title, "≥ 4", "×", in_fresh_process, matrices)
    title = f"sequences that the general model reads for a {RESPONSES}×{RESPONSES} matrix"
    yield row(title, f"≤ {RESPONSES}", "", in_fresh_process, passes)


# --- the workload ---


class Workload(NamedTuple):
    """A Llama and its tokenizer in a folder, and 64 pairs of exactly PROMPT + RESPONSE tokens."""

    folder: str
    pairs: list[dict[str, str]]

    def model(self) -> PreTrainedModel:
        """Loaded anew."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    def tokenizer(self) -> Any:
        """Likewise."""
        return AutoTokenizer.from_pretrained(self.folder)

    def records(self) -> list[Pair]:
        """The pairs as ours."""
        return [Pair(**pair) for pair in self.pairs]

    def batch(self) -> Tokens:
        """The first PAIRS pairs: chosen, then rejected."""
        encoder = Encoder(self.tokenizer())
        return collate_pairs(encode_pairs(encoder, self.records()[:PAIRS]), encoder.pad_id).tokens


@contextmanager
def workload(vocabulary: int = SMALL, layers: int = 4) -> Iterator[Workload]:
    """One thread, width 256, weights and words at random."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
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

    # Both libraries end a completion with a token of its own.
    fields = {"prompt": PROMPT, "chosen": RESPONSE - 1, "rejected": RESPONSE - 1}
    space = {"prompt": "", "chosen": " ", "rejected": " "}
    pairs = [{name: space[name] + text(size) for name, size in fields.items()} for _ in range(4 * PAIRS)]
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Workload(folder, pairs)


Stepped = Callable[[], None]  # called after every step of a loop


def our_loop(work: Workload, steps: int, reference: str, stepped: Stepped) -> None:
    """What `nashpref train` does with `method: dpo`."""
    with tempfile.TemporaryDirectory() as output:
        config = TrainConfig(
            output=output,
            max_steps=steps,
            batch_size=PAIRS,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            eval_every=1,
        )
        data, model = DataConfig(train=""), ModelConfig(name=work.folder)
        method = DPO(method="dpo", beta=BETA, reference=reference, data=data, model=model, train=config)
        accelerator = make_accelerator(config)
        task = method.task(work.records(), (), accelerator)
        batches = LengthBuckets([len(example) for example in task.examples], PAIRS)

        def evaluate() -> dict[str, float]:
            stepped()
            return {}

        fit(
            task.objective,
            task.examples,
            batches,
            task.collate,
            config,
            accelerator=accelerator,
            evaluate=evaluate,
        )


class After(TrainerCallback):
    """Tells of every step of TRL's."""

    def __init__(self, stepped: Stepped) -> None:
        self.stepped = stepped

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stepped()


def trl_loop(work: Workload, steps: int, stepped: Stepped, **options: Any) -> None:
    """TRL's, reference and all."""
    model = work.model()
    with trl_trainer(work, model, copy.deepcopy(model), max_steps=steps, **options) as trainer:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(After(stepped))
        trainer.train()


@contextmanager
def trl_trainer(work: Workload, model: Any, reference: Any, **options: Any) -> Iterator[Any]:
    """TRL's trainer with its defaults, but for float32 and what a CPU needs."""
    from datasets import Dataset, disable_progress_bars
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    disable_progress_bars()
    warnings.simplefilter("ignore")  # its own deprecated options
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
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
            ref_model=None if options.get("precompute_ref_log_probs") else reference,
            args=arguments,
            train_dataset=Dataset.from_list(work.pairs),
            processing_class=work.tokenizer(),
        )


# --- agreement ---


def agreement(name: str) -> Measured:
    """The policy is the reference with noise on its weights, so that no log-ratio is zero."""
    with workload(layers=2) as work:
        model, reference = work.model(), work.model()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        with trl_trainer(work, model, reference, loss_type=[name]) as trainer:
            inputs = next(iter(trainer.get_train_dataloader()))
            theirs = float(trainer.compute_loss(trainer.model, inputs))
    tokens = Tokens(*(inputs[field] for field in Tokens._fields))
    logps, of_reference = completion_logps(model, tokens), reference_logps(reference, [tokens])
    if name == "sigmoid":
        ours = losses.dpo(*logps.chunk(2), *of_reference.chunk(2), beta=BETA)
    else:  # TRL's IPO takes means over tokens
        lengths = tokens.completion_mask.sum(dim=1)
        ours = losses.ipo(*(logps / lengths).chunk(2), *(of_reference / lengths).chunk(2), beta=BETA)
    gap = (logps - of_reference).abs().mean().item()
    return abs(ours.mean().item() - theirs), f"{ours.mean():.6f} against {theirs:.6f}; |log-ratio| {gap:.2g}"


# --- time ---


def speed(reference: str, steps: int = 7) -> Measured:
    """From the end of a step to the end of the next, data, logging and all, in one process in turns."""
    precomputed = reference == "precomputed"
    with workload() as work:
        pairs = in_turns(
            lambda stepped: our_loop(work, steps, reference, stepped),
            lambda stepped: trl_loop(
                work, steps, stepped, gradient_checkpointing=False, precompute_ref_log_probs=precomputed
            ),
        )
    return pairs.slowdown, f"{pairs}, {len(pairs.ours)} pairs; no gradient checkpointing in either"


def in_turns(ours: Callable[[Stepped], object], peer: Callable[[Stepped], object]) -> Pairs:
    """CPU times of the steps of two loops, each in a thread of its own that waits while the other steps."""
    ends: tuple[list[float], list[float]] = ([], [])
    turns = Semaphore(1), Semaphore(0)

    def run(me: int, loop: Callable[[Stepped], object]) -> None:
        def stepped() -> None:
            ends[me].append(thread_time())
            turns[1 - me].release()
            turns[me].acquire()

        turns[me].acquire()
        try:
            loop(stepped)
        finally:
            turns[1 - me].release(1_000_000)  # no more waiting for this one

    with ThreadPoolExecutor(2) as pool:
        for running in [pool.submit(run, me, loop) for me, loop in enumerate((ours, peer))]:
            running.result()
    times = [[end - begin for begin, end in pairwise(each)] for each in ends]
    return Pairs(times[0], times[1], (None, None))


def over_floor(shared: bool = False) -> Measured:
    """Against all that multiplies matrices and nothing else: backbone, and head where it is needed."""
    with workload() as work:
        model, tokens = work.model(), work.batch()
    score = pair_logps if shared else completion_logps
    predicting = slice(PROMPT - 1, PROMPT + RESPONSE - 1)
    gradient = torch.full((2 * PAIRS, RESPONSE, SMALL), 1.0 / SMALL)

    def ours() -> None:
        model.zero_grad()
        score(model, tokens).sum().backward()

    def bare() -> None:
        model.zero_grad()
        states = model.base_model(tokens.input_ids, use_cache=False).last_hidden_state
        model.get_output_embeddings()(states[:, predicting]).backward(gradient)

    pairs = interleave(ours, bare, 5)
    rate = tokens.input_ids.numel() / np.median(pairs.ours)
    return pairs.slowdown, f"{pairs}; {rate:.0f} tokens a second"


# --- memory ---


def memory() -> Measured:
    """Whole processes, imports and all, and a copy as the reference; ours without gradient checkpointing."""
    (ours, our_note), (theirs, their_note) = (in_fresh_process(measure) for measure in (our_peak, trl_peak))
    return ours / theirs, f"{our_note} against {their_note}"


def our_peak() -> Measured:
    """Of two steps; the checkpoint that is saved after them is in the note."""
    peaks: list[int] = []
    with workload(LARGE) as work:
        our_loop(work, 2, "copy", lambda: peaks.append(resident_at_most()))
    saving = resident_at_most()
    return peaks[-1], f"{mib(peaks[-1])} ({mib(saving)} while a checkpoint is saved)"


def trl_peak() -> Measured:
    """Of two steps, with the gradient checkpointing that is TRL's default."""
    peaks: list[int] = []
    with workload(LARGE) as work:
        trl_loop(work, 2, lambda: peaks.append(resident_at_most()))
    return peaks[-1], mib(peaks[-1])


def resident_at_most() -> int:
    """Bytes, so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def mib(size: int) -> str:
    """Bytes, readably."""
    return f"{size / 2**20:.0f} MiB"


# --- matrices ---


def matrix_models(work: Workload) -> tuple[Any, Any, str, list[str]]:
    """The general and the pairwise model on one backbone, a prompt, and RESPONSES responses."""
    backbone, tokenizer = work.model(), work.tokenizer()
    general, pairwise_model = (
        kind.from_backbone(backbone, tokenizer) for kind in (GeneralPreferenceModel, PairwisePreferenceModel)
    )
    prompt, responses = work.pairs[0]["prompt"], [pair["chosen"] for pair in work.pairs[:RESPONSES]]
    return general, pairwise_model, prompt, responses


def matrices() -> Measured:
    """From texts to probabilities."""
    with workload() as work:
        general, pairwise_model, *inputs = matrix_models(work)
    pairs = interleave(lambda: general.matrix(*inputs), lambda: pairwise_model.matrix(*inputs), 2)
    return pairs.speedup, str(pairs)


def passes() -> Measured:
    """Rows that go through the backbone."""
    with workload(layers=1) as work:
        *models, prompt, responses = matrix_models(work)
    counts = []
    for model in models:
        rows: list[int] = []
        model.backbone.register_forward_hook(lambda _, __, output, to=rows: to.append(len(output[0])))
        P = model.matrix(prompt, responses)
        counts.append(sum(rows))
        if not (P + P.T == 1.0).all():
            raise RuntimeError("P + Pᵀ is not 1")
    return counts[0], f"the pairwise model reads {counts[1]}, twice as long"
