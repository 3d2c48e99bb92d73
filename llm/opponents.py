"""Whom a policy is compared with while it trains: where it began, itself a while ago, and whom you name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from nashpref.llm.completions import Asked, CompletionSpace
from nashpref.llm.data import Text
from nashpref.llm.evaluation import prompt_groups
from nashpref.llm.intervals import proportion
from nashpref.llm.policies import Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.preferences.tournament import win_rates
from nashpref.llm.runs import write_text
from nashpref.llm.turns import DialogueSpace
from nashpref.policies import FloatArray

EVALUATION = 1 << 16  # streams of random numbers that training does not draw from
RESPONSES = "responses"  # folder in that of a run

Pool = Mapping[str, str | Path | nn.Module]
"""Names of opponents, each a causal language model or a folder (or name) with one and its tokenizer."""

Texts = list[list[Text]]
T = TypeVar("T")


class Opponents:
    """Win-rates of a policy on the same prompts, again and again.

    The opponents are `reference`, where training started; `previous`, the policy at the evaluation before,
    whose responses are kept in the run's folder, so that a run that goes on finds them; and those of a pool.
    Policies that stay the same are sampled once. Processes share the prompts, and each learns what all have
    found; every prompt has random numbers of its own, so that it does not matter which process answers it.

    Args:
        space: samples and compares, K responses of each policy to each prompt.
        accelerator: of which processes there are.
        prompts: to be answered.
        start: the weights of `reference`.
        folder: of the run; responses are in `responses/<step>.jsonl` there, one line for each prompt.
        pool: further opponents; "reference" and "previous" are taken.
        batch_size: prompts that are sampled at once.

    Raises:
        ValueError: a name that is taken.
    """

    def __init__(
        self,
        space: CompletionSpace | DialogueSpace,
        accelerator: Accelerator,
        prompts: Sequence[Asked],
        start: Weights,
        folder: Path,
        pool: Pool | None = None,
        *,
        batch_size: int,
    ) -> None:
        self.space, self.prompts, self.start, self.batch_size = space, prompts, start, batch_size
        self.folder, self.pool = folder / RESPONSES, dict(pool or {})
        self.latest: tuple[int, Texts] = 0, []
        self.own = slice(accelerator.process_index, None, accelerator.num_processes)
        if taken := {"reference", "previous"} & self.pool.keys():
            raise ValueError(f"pool: the name {taken.pop()!r} is taken; call the opponent something else")

    def win_rates(self, policy: Weights, step: int) -> dict[str, float]:
        """`win_rate/<opponent>`, with `…/low` and `…/high`. All processes call it.

        The ends are those of 95 %, with prompts as what varies, equal ones counted as one (see
        `nashpref.llm.intervals.proportion`); where all prompts are equal there are none. The numbers that
        responses are drawn from depend on the step, so that no policy shares them with an earlier one.
        """
        own, ours = self.own, self._drawn(self.space, policy, step, EVALUATION)
        groups = prompt_groups(asked.prompt for asked in self.prompts)
        metrics: dict[str, float] = {}
        previous = gather_object([self._previous(step)])[0]  # the main process's, which has written them
        for name, theirs in {**self._fixed, **previous}.items():
            w = mean_win_rates(self.space.preference, self.prompts[own], ours[own], theirs[own])
            found = proportion(np.array(self._gathered(w.tolist())), groups)
            metrics[f"win_rate/{name}"] = found.value
            if not math.isnan(found.low):
                metrics |= {f"win_rate/{name}/low": found.low, f"win_rate/{name}/high": found.high}
        self.latest = step, ours
        return metrics

    def keep(self) -> None:
        """Write the responses that were drawn last where `previous` finds them at later steps."""
        step, responses = self.latest
        rows = zip(self.prompts, responses, strict=True)
        lines = [json.dumps({"prompt": x.prompt, "responses": y}, ensure_ascii=False) for x, y in rows]
        write_text(self.folder / f"{step:08d}.jsonl", "".join(f"{line}\n" for line in lines))

    @cached_property
    def _fixed(self) -> dict[str, Texts]:
        fixed = {"reference": self._drawn(self.space, self.start, 0, EVALUATION + 1)}
        for stream, (name, model) in enumerate(self.pool.items(), EVALUATION + 2):
            fixed[name] = self._drawn(self._space_of(model), None, 0, stream)
        return fixed

    def _previous(self, step: int) -> dict[str, Texts]:
        """What was kept last before this step, if it answers the same prompts."""
        files = sorted(self.folder.glob("[0-9]*.jsonl"))
        for path in [path for path in files if int(path.stem) < step][-1:]:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if [row["prompt"] for row in rows] == [asked.prompt for asked in self.prompts]:
                return {"previous": [row["responses"] for row in rows]}
        return {}

    def _space_of(self, model: str | Path | nn.Module) -> CompletionSpace | DialogueSpace:
        """That of another model, which only draws there; a folder brings its own tokenizer."""
        if isinstance(model, nn.Module):
            return self.space.of(model)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = next(self.space.store.model.parameters()).device
        loaded: Any = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)
        return self.space.of(loaded.to(device), AutoTokenizer.from_pretrained(model))

    def _drawn(
        self, space: CompletionSpace | DialogueSpace, policy: Weights | None, step: int, stream: int
    ) -> Texts:
        own = self.prompts[self.own]
        return self._gathered(drawn(space, policy, own, step, stream, self.batch_size))

    def _gathered(self, found: list[T]) -> list[T]:
        """Of all prompts, in order, from what every process has found of its own."""
        places = range(len(self.prompts))[self.own]
        return [each for _, each in sorted(gather_object(list(zip(places, found, strict=True))))]


def drawn(
    space: CompletionSpace | DialogueSpace,
    policy: Weights | None,
    prompts: Sequence[Asked],
    step: int,
    stream: int,
    batch_size: int,
) -> Texts:
    """K responses to each prompt, or dialogues, `batch_size` prompts at once; see `CompletionSpace.draw`."""
    parts = (prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size))
    return [texts for part in parts for texts in space.respond(policy, part, step, stream)]


def mean_win_rates(
    preference: Preference, prompts: Sequence[Asked], ours: Texts, theirs: Texts
) -> FloatArray:
    """`w(x) = (1/KL) Σ_kl Pr(y_k ≻ z_l | x)` for each prompt, `(B,)`: all responses against all."""
    return np.array(
        [
            float(win_rates(preference, [asked.prompt], [y], [z]).mean())
            for asked, y, z in zip(prompts, ours, theirs, strict=True)
        ]
    )
