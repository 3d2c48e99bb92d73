"""One GPU: tokens per second, peak memory, and how much of the matmul ceiling; without any download.

    python -m benchmarks.gpu --size 350m --out benchmarks/gpu.json

The model is made from a configuration, at random, in bfloat16. **The figures of a GPU have not been measured
yet**: there was none; `--size tiny` runs the same on a CPU. The memory table that is printed first is a
formula: weights, gradients and AdamW's two moments in the dtype of the weights, the named policies that each
rule keeps (counted, by running the rule), and the caches of the networks that are sampled at once.
Activations and the logits of one token of all rows come on top; `offload` moves the policies to the CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import nashpref as npf
from nashpref.llm.completions import Asked, CompletionSpace
from nashpref.llm.encoding import Encoder
from nashpref.llm.inputs import Lora
from nashpref.llm.interpreter import MirrorObjective
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.policies import Blend

WORDS = [f"w{i}" for i in range(1000)]
RULES: dict[str, npf.UpdateRule] = {
    "GDA": npf.GDA(beta=0.1, eta=0.5),
    "NashMD": npf.NashMD(beta=0.1, eta=5.0),
    "NashEMA": npf.NashEMA(beta=0.1, eta=0.5),
    "OGDA": npf.OGDA(beta=0.1),
    "EGPO": npf.EGPO(beta=0.1),
    "MNPO": npf.MNPO(beta=0.1, eta=0.5),
    "COMAL": npf.COMAL(beta=0.1, every=2),
}


class Size(NamedTuple):
    """A model, and a batch that suits it: B prompts of so many tokens, K responses to each."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    prompts: int
    samples: int
    prompt_tokens: int
    new_tokens: int
    matmul: int


SIZES = {
    "tiny": Size(2, 64, 4, 1100, 2, 4, 8, 8, 256),
    "125m": Size(12, 768, 12, 32_000, 16, 8, 128, 128, 8192),
    "350m": Size(24, 1024, 16, 32_000, 16, 8, 128, 128, 8192),
    "1b": Size(22, 2048, 16, 32_000, 8, 8, 128, 128, 8192),
}


def build(size: Size, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """At random, on the device."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.prompt_tokens + size.new_tokens + 8,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def kept(rule: npf.UpdateRule, *, lora: bool) -> tuple[int, int]:
    """Named policies with weights of their own, and networks sampled at once: the most in five rounds."""
    tokenizer = tiny_tokenizer(["a b"])
    model: Any = tiny_causal_lm(tokenizer, layers=1, width=16)
    space = CompletionSpace(Lora(rank=1).adapt(model) if lora else model, Encoder(tokenizer), judge)
    objective = MirrorObjective(space, rule)
    policies = networks = 0
    while objective.round < 5:
        policies = max(policies, len({key.split(".")[0] for key in objective.state()[0]}))
        for name in objective.step.payoffs:
            policy = objective.policy(name)
            networks = max(networks, len(policy.parts) if isinstance(policy, Blend) else 1)
        objective.advance({})
    return policies, networks


def memory(size: Size, *, rank: int | None = None, width: int = 2) -> list[dict[str, Any]]:
    """GiB by the formula, for each rule; `rank` of LoRA on every matrix, `width` bytes of a number."""
    d, hidden = size.width, 4 * size.width
    matrices = [(d, d)] * 4 + [(d, hidden)] * 3
    block = sum(a * b for a, b in matrices)
    weights = size.layers * (block + 2 * d) + 2 * size.vocabulary * d + d
    trained = weights if rank is None else size.layers * sum(rank * (a + b) for a, b in matrices)
    rows, tokens = size.prompts * size.samples, size.prompt_tokens + size.new_tokens
    cache = rows * tokens * 2 * size.layers * d
    table = []
    for name, rule in RULES.items():
        policies, networks = kept(rule, lora=rank is not None)
        parts = {
            "weights": weights + (trained if rank else 0),
            "gradients": trained,
            "moments": 2 * trained,
            "policies": policies * trained,
            "caches": networks * cache,
        }
        gib = {part: count * width / 2**30 for part, count in parts.items()}
        table.append({"rule": name, "kept": policies, **gib, "sum": sum(gib.values())})
    return table


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """GiB, aligned."""
    names = list(rows[0])
    print("  ".join(f"{name:>9}" for name in names))
    for row in rows:
        print("  ".join(f"{v:>9.3f}" if isinstance(v, float) else f"{v!s:>9}" for v in row.values()))


def judge(prompts: Sequence[Any], a: Sequence[str], b: Sequence[str]) -> list[float]:
    """A cheap preference: it is not what is measured."""
    return [0.5 + 0.4 * ((len(x) > len(y)) - (len(x) < len(y))) for x, y in zip(a, b, strict=True)]


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The least of several, after one that does not count."""
    best = float("inf")
    for k in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        if k:
            best = min(best, time.perf_counter() - began)
    return best


def measure(size: Size, device: torch.device, dtype: torch.dtype, repeats: int = 3) -> dict[str, float]:
    """Everything that is timed; rates in tokens and operations per second."""
    n = size.matmul
    a = torch.randn(n, n, device=device, dtype=dtype)
    ceiling = 2.0 * n**3 / seconds(lambda: a @ a, device, repeats)
    tokenizer = tiny_tokenizer([" ".join(WORDS)])
    model = build(size, device, dtype)
    weights = sum(p.numel() for p in model.parameters())
    body = weights - size.vocabulary * size.width  # looking up an embedding is no multiplication
    prompt = " ".join(WORDS[: size.prompt_tokens - 1])
    prompts = [Asked(i, prompt, size.prompt_tokens) for i in range(size.prompts)]
    space = CompletionSpace(
        model, Encoder(tokenizer), judge, samples=size.samples, max_new_tokens=size.new_tokens
    )
    start = space.store.take()
    mixture = Blend(((start, 0.5), (space.store.take(), 0.5)))
    draws = space.draw(None, prompts, 0, 0)
    drawn = int(draws.responses.tokens.completion_mask.sum())
    read = int(draws.responses.tokens.attention_mask.sum())
    results: dict[str, float] = {"weights": weights, "ceiling": ceiling}
    for name, policy in (("sampling", start), ("sampling_mixture", mixture)):
        took = seconds(lambda policy=policy: space.draw(policy, prompts, 0, 0), device, repeats)
        results[f"{name}_tokens_per_second"] = drawn / took

    def step() -> None:
        space.logps(None, draws).sum().backward()
        model.zero_grad(set_to_none=True)

    took = seconds(step, device, repeats)
    results["training_tokens_per_second"] = read / took
    results["training_utilisation"] = 6.0 * body * read / took / ceiling
    return results


def nash_step(size: Size, device: torch.device, dtype: torch.dtype, rounds: int = 3) -> dict[str, float]:
    """Optimizer steps of Nash-MD, sampling, comparing, fitting and all; the first does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    prompt = " ".join(WORDS[: size.prompt_tokens - 1])
    with tempfile.TemporaryDirectory() as folder:
        args = NashConfig(
            output=folder,
            rounds=rounds,
            samples=size.samples,
            batch_size=size.prompts,
            micro_batch_size=max(1, size.prompts // 4),
            max_new_tokens=size.new_tokens,
            learning_rate=1e-6,
            gradient_checkpointing=True,
            log_every=1,
        )
        trainer = NashTrainer(
            build(size, device, dtype),
            RULES["NashMD"],
            judge,
            args,
            [f"{prompt} {WORDS[i]}" for i in range(size.prompts)],
            tiny_tokenizer([" ".join(WORDS)]),
        )
        log = trainer.train(progress=False)
    result = {"nash_step_seconds": min(record["seconds"] for record in log[1:])}
    if device.type == "cuda":
        result["nash_step_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """See above."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--size", choices=SIZES, default="350m")
    parser.add_argument("--out", metavar="JSON", help="write everything to this file, which must not exist")
    parser.add_argument("--table", action="store_true", help="the memory table only")
    options = parser.parse_args(arguments)
    if options.out and Path(options.out).exists():
        sys.exit(f"{options.out}: exists already; choose another name")
    size = SIZES[options.size]
    tables = {"all weights": memory(size), "LoRA of rank 16": memory(size, rank=16)}
    for title, table in tables.items():
        print(f"{options.size}, {title}, GiB by the formula")
        print_table(table)
    if options.table:
        return
    cuda = torch.cuda.is_available()
    if not cuda and options.size != "tiny":
        sys.exit("no GPU: --size tiny tries everything on the CPU, --table prints the memory table")
    device = torch.device("cuda" if cuda else "cpu")
    results = measure(size, device, torch.bfloat16) | nash_step(size, device, torch.bfloat16)
    for name, value in results.items():
        print(f"{name:>32}  {value:,.4g}")
    if options.out:
        about = {
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "torch": torch.__version__,
            "size": options.size,
            "shape": size._asdict(),
        }
        content = {**about, "measured": results, "memory_by_formula": tables}
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
