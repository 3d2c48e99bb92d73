"""Decoding with a reward: FaRMA against ARGS, in time and in reward; what a hundred responses cost.

Policy and reward models have one architecture and size, as in the papers, and weights at random: time does
not depend on them. ARGS is measured in two forms. "From the beginning" reads each prefix with each candidate
as a sequence of its own, all candidates of all rows in one batch; "cached" is `PrefixScores`, which reads
what is new, all candidates after one copy of the prefix. The policy has its cache in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from benchmarks.harness import Measured, Row, in_fresh_process, interleave, row, seconds, timed
from nashpref.llm.decoding import (
    FarmaModel,
    PrefixScores,
    RewardGuided,
    best_of_n,
    cards,
    encode_prompts,
    generate,
    scores_of,
)
from nashpref.llm.decoding.generation import Prompts, texts_of
from nashpref.llm.encoding import Encoder
from nashpref.llm.logprobs import quietly
from nashpref.llm.playground import SPECIAL, tiny_tokenizer
from nashpref.llm.preferences import BradleyTerryModel
from nashpref.llm.sampling import sample

VOCABULARY, WIDTH, LAYERS = 8192, 256, 4
PROMPTS, PROMPT, RESPONSE, CANDIDATES = 10, 32, 64, 10
N = 16  # of best-of-n


def rows() -> Iterator[Row]:
    """Agreement, ratios, seconds by method, and rewards on the playground."""
    title = "scores of ARGS, cached, against those from the beginning: largest difference"
    yield row(title, "≤ 1e-4", "", in_fresh_process, agreement)
    for batch in (1, PROMPTS):
        title = f"CPU time of ARGS from the beginning over FaRMA, {CANDIDATES} candidates, {batch} rows"
        yield row(title, "≥ 4", "×", in_fresh_process, speed, "beginning", batch)
    for batch in (1, PROMPTS):
        title = f"CPU time of ARGS, cached, over FaRMA, {CANDIDATES} candidates, {batch} rows"
        yield row(title, None, "×", in_fresh_process, speed, "cached", batch)
    for method in ("policy", "FaRMA", "ARGS, cached", "ARGS from the beginning", f"best of {N}", "CARDS"):
        title = f"CPU time of 100 responses of {RESPONSE} tokens, {method}"
        yield row(title, None, "s", in_fresh_process, hundred, method)
    title = "true reward of FaRMA minus that of ARGS on the playground, the least over β"
    yield row(title, "≥ 0", "", in_fresh_process, rewards)


class Workload:
    """One thread; a policy, a reward model and a FaRMA model of one size, and prompts of one length."""

    def __init__(self, batch: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        words = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL))]
        tokenizer = tiny_tokenizer(words)
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=4,
            n_positions=PROMPT + RESPONSE + 8,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.policy: Any = AutoModelForCausalLM.from_config(config).eval()
        self.encoder = Encoder(tokenizer)
        self.full = BradleyTerryModel.from_backbone(self.policy, tokenizer)
        self.farma = FarmaModel.from_backbone(self.policy, tokenizer)
        rng = np.random.default_rng(0)
        self.texts = [" ".join(rng.choice(words, PROMPT)) for _ in range(batch)]
        self.prompts = encode_prompts(self.encoder, self.texts, room=RESPONSE)

    def decode(self, how: str) -> None:
        """RESPONSE tokens for every prompt, guided by what `how` says."""
        scores: Any
        if how == "beginning":
            scores = FromTheBeginning(self.full)
        else:
            guide = self.farma if how == "FaRMA" else self.full
            scores = scores_of(guide, self.encoder, self.prompts)
        rows = self.generate([RewardGuided(scores, 1.0, CANDIDATES)])
        assert sum(map(len, rows)) > 0.9 * len(rows) * RESPONSE, "responses ended early"

    def generate(self, processors: list[Any], prompts: Prompts | None = None) -> list[list[int]]:
        """From the policy."""
        asked = prompts or self.prompts
        return generate(
            self.policy,
            self.encoder,
            asked.ids,
            asked.mask,
            max_new_tokens=RESPONSE,
            processors=processors,
            generator=torch.Generator().manual_seed(0),
        )


class FromTheBeginning:
    """A full-sequence reward model that is asked about each prefix with each candidate, without a cache."""

    def __init__(self, model: BradleyTerryModel) -> None:
        self.model = model

    def __call__(self, ids: Tensor, candidates: Tensor) -> Tensor:
        """In one batch of `N·k` sequences."""
        k = candidates.shape[1]
        sequences = torch.cat([ids.repeat_interleave(k, dim=0), candidates.reshape(-1, 1)], dim=1)
        with quietly(self.model):
            states = self.model.backbone(sequences, use_cache=False)[0][:, -1]
            scores: Tensor = self.model.head(states)
        return scores.view(-1, k)


def agreement() -> Measured:
    """On prefixes that grow by a token."""
    work, rng = Workload(4), torch.Generator().manual_seed(0)
    cached, plain = PrefixScores(work.full), FromTheBeginning(work.full)
    ids, largest = work.prompts.ids, 0.0
    for _ in range(8):
        candidates = torch.randint(len(SPECIAL), VOCABULARY, (len(ids), CANDIDATES), generator=rng)
        ours, theirs = cached(ids, candidates), plain(ids, candidates)
        largest = max(largest, float((ours - theirs).abs().max()))
        ids = torch.cat([ids, candidates[:, :1]], dim=1)
    return largest, f"scores spread by {float(theirs.std()):.2g}"


def speed(how: str, batch: int) -> Measured:
    """In turns."""
    work = Workload(batch)
    work.decode("FaRMA")
    turns = 3 if how == "cached" else 1  # the other takes a minute, and is far from the target
    pairs = interleave(partial(work.decode, "FaRMA"), partial(work.decode, how), turns, warm_up=False)
    return pairs.speedup, f"{pairs} for {batch} × {RESPONSE} tokens after {PROMPT}; {LAYERS} × {WIDTH} GPT-2"


def hundred(method: str) -> Measured:
    """Scaled from one batch."""
    work = Workload(PROMPTS)
    actions: dict[str, Callable[[], Any]] = {
        "policy": partial(work.generate, []),
        "FaRMA": partial(work.decode, "FaRMA"),
        "ARGS, cached": partial(work.decode, "cached"),
        "ARGS from the beginning": partial(work.decode, "beginning"),
        f"best of {N}": partial(_best, work),
        "CARDS": partial(_cards, work),
    }
    scale = 100 / PROMPTS
    total = scale * timed(actions[method])[0]
    return total, f"{PROMPTS} at a time, {seconds(total / 100)} each"


def _best(work: Workload) -> None:
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "max_new_tokens": RESPONSE}
    drawn = sample(work.policy, work.encoder, work.texts, N, **options)
    best_of_n(work.full.rewards, work.texts, drawn.texts)


def _cards(work: Workload) -> None:
    """The entropy cuts where it is among the highest fifth; the threshold is that of an average response."""
    with torch.no_grad():
        log_p = torch.log_softmax(work.policy(work.prompts.ids).logits.flatten(0, 1), dim=-1)
    entropy = float(torch.quantile(-(log_p.exp() * log_p).sum(dim=-1), 0.8))
    usual = work.full.rewards(work.texts, texts_of(work.encoder, work.generate([])))
    cards(
        work.policy,
        work.encoder,
        work.texts,
        work.full.rewards,
        goal=float(usual.mean()),
        floor=float(usual.mean()),
        beta=float(usual.std()),
        entropy=entropy,
        max_new_tokens=RESPONSE,
        generator=torch.Generator().manual_seed(0),
    )


def rewards() -> Measured:
    """Of the experiment `decoding`, without what is trained."""
    from nashpref.experiments import decoding
    from nashpref.experiments.networks import fine_tuned

    torch.set_num_threads(1)
    s = dataclasses.replace(decoding.EXPERIMENT.sizes["default"], betas=(1.0, 0.3, 0.1))
    task, reward = decoding.plans(s)
    model = fine_tuned(task, width=s.width, steps=s.sft_steps, seed=s.seed)
    guides, _ = decoding.learned(model, task, s)
    found: dict[str, list[float]] = {"ARGS": [], "FaRMA": []}
    for method, _, decode, _ in decoding.guided_decoders(model, task, guides, s):
        if method in found:
            texts = decode()
            found[method].append(decoding.judged(task, reward, texts, texts)[0])
    ahead = np.subtract(found["FaRMA"], found["ARGS"])
    listed = ", ".join(
        f"{farma:.2f} against {args:.2f} at β = {beta:g}"
        for farma, args, beta in zip(found["FaRMA"], found["ARGS"], s.betas, strict=True)
    )
    return float(ahead.min()), listed
