"""Methods that train a policy on responses that it draws as it learns; see `nashpref.llm.online`."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from nashpref.llm.algorithms import GRPO, PPO, REINFORCE, RLOO, Algorithm, DrGRPO, Kimi, ReMax
from nashpref.llm.config import from_mapping
from nashpref.llm.data import Record
from nashpref.llm.dialogues import Environment, ModelUser, Recorded, Scripted
from nashpref.llm.loading import load_preference
from nashpref.llm.methods.base import Save
from nashpref.llm.methods.iterative import prompts_of
from nashpref.llm.methods.policies import PolicyMethod, save_policy
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.online import OnlineConfig, OnlineTrainer
from nashpref.llm.preferences.adapters import Reward
from nashpref.llm.preferences.models import BradleyTerryModel
from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer
from nashpref.llm.verifiable import ThinkAnswer, VerifiableTask, greedy_metrics, same_number, same_text
from nashpref.mirror import UpdateRule
from nashpref.named_rules import make_rule, nearest

ALGORITHMS: Mapping[str, type[Algorithm]] = {
    "reinforce": REINFORCE,
    "rloo": RLOO,
    "remax": ReMax,
    "grpo": GRPO,
    "dr-grpo": DrGRPO,
    "ppo": PPO,
    "kimi": Kimi,
}


@dataclass(frozen=True, kw_only=True)
class Online(PolicyMethod):
    """What trains on responses to the prompts in `data.train`, of whatever records.

    Attributes:
        train: `lora` and `max_length` are those of `model` and `data`.
    """

    train: OnlineConfig

    def __post_init__(self) -> None:
        if self.train.lora is not None:
            raise ValueError("train: lora is set by model.lora; leave it out here")
        if self.train.max_length not in (None, self.data.max_length):
            raise ValueError("train: max_length is set by data.max_length; leave it out here")
        train = dataclasses.replace(self.train, max_length=self.data.max_length)
        object.__setattr__(self, "train", train)

    @abstractmethod
    def trainer(
        self, model: nn.Module, tokenizer: Any, records: Sequence[Record], held_out: Sequence[Record]
    ) -> OnlineTrainer:
        """Of the model, on the prompts of records, evaluated on those held out, if there are any."""

    def run(
        self,
        records: Sequence[Record],
        held_out: Sequence[Record],
        accelerator: Accelerator,
        *,
        options: Mapping[str, Any],
        progress: bool = False,
    ) -> Save:
        """The trainer's; what is saved is the policy after the last round."""
        model, encoder = self.policy(records, accelerator.device)
        trainer = self.trainer(model, encoder.tokenizer, records, held_out)
        trainer.train(options=options, progress=progress)
        return partial(save_policy, model, encoder.tokenizer)


@dataclass(frozen=True, kw_only=True)
class Talk:
    """Who is talked to: users as they were recorded, or with one of the others, a script or a model.

    Attributes:
        turns: H, the most turns of the policy.
        lines: what the user says, one line after another, whatever the prompt; H − 1 of them at least.
        model: a folder or name of a chat model that is the user, and what it is told first, `instruction`.
    """

    turns: int
    lines: tuple[str, ...] = ()
    model: str | None = None
    instruction: str | None = None

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns = {self.turns}: at least 1 is needed")
        if self.lines and self.model is not None:
            raise ValueError("lines and model: the user follows a script or is a model; leave one out")
        if (self.model is None) != (self.instruction is None):
            raise ValueError("model and instruction: a model that is the user has to be told so; give both")
        if self.lines and len(self.lines) < self.turns - 1:
            raise ValueError(f"lines: {len(self.lines)} for {self.turns} turns; {self.turns - 1} are needed")

    def environment(self, device: Any, max_new_tokens: int) -> Environment:
        """That of `NashTrainer`."""
        if self.lines:
            return Scripted(self.lines[: self.turns - 1])
        if self.model is None or self.instruction is None:
            return Recorded(self.turns)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(self.model, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        return ModelUser(
            model.to(device), tokenizer, self.turns, self.instruction, max_new_tokens=max_new_tokens
        )


@dataclass(frozen=True, kw_only=True)
class Nash(Online):
    """An update rule of `nashpref`, by `NashTrainer`.

    Attributes:
        rule: its `name`, as `nashpref solve --rule` has it, and its options; a list is a schedule.
        preference: folder of a saved preference model.
        train: see `NashConfig`.
        environment: for dialogues; None: single responses.
    """

    rule: dict[str, Any]
    preference: str
    train: NashConfig
    environment: Talk | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.update_rule()  # it knows which options are good

    def update_rule(self) -> UpdateRule:
        """The rule itself."""
        options = dict(self.rule)
        try:
            return make_rule(str(options.pop("name", "")), options)
        except ValueError as error:
            raise ValueError(f"rule: {error}") from None

    def trainer(
        self, model: nn.Module, tokenizer: Any, records: Sequence[Record], held_out: Sequence[Record]
    ) -> NashTrainer:
        """`NashTrainer`."""
        rule, judge = self.update_rule(), load_preference(self.preference)
        prompts, others = prompts_of(records), prompts_of(held_out) or None
        talk = None
        if self.environment is not None:
            device = next(model.parameters()).device
            talk = self.environment.environment(device, self.train.max_new_tokens)
        return NashTrainer(
            model, rule, judge, self.train, prompts, tokenizer, eval_dataset=others, environment=talk
        )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A reward of 1 for the right answer, which the records hold as their completions; else 0.

    Attributes:
        check: "text", exact match but for white space at both ends, or "number".
        think_answer: ask for the form of `nashpref.llm.verifiable.ThinkAnswer`, with this weight; None: the
            response is the answer.
    """

    check: Literal["text", "number"]
    think_answer: float | None = None

    def __post_init__(self) -> None:
        if self.think_answer is not None and not 0.0 <= self.think_answer <= 1.0:
            raise ValueError(f"think_answer = {self.think_answer}: a weight in [0, 1] is needed")

    def reward(self, records: Sequence[Record], held_out: Sequence[Record]) -> Reward:
        """Of these records."""
        check = same_text if self.check == "text" else same_number
        task = VerifiableTask(records, held_out, check=check)
        return task if self.think_answer is None else ThinkAnswer(task, weight=self.think_answer)


@dataclass(frozen=True, kw_only=True)
class RLHF(Online):
    """A policy gradient on a reward, by `RLHFTrainer`.

    Attributes:
        algorithm: its `name`, one of `ALGORITHMS`, and its options.
        reward: folder of a saved Bradley–Terry model, or how answers are checked, see `Checked`; the mean of
            the latter on greedy responses to the held-out prompts is then logged as `greedy_reward`.
        train: see `RLHFConfig`.
    """

    algorithm: dict[str, Any]
    reward: str | Checked
    train: RLHFConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gradient()  # it knows which options are good

    def gradient(self) -> Algorithm:
        """The algorithm itself."""
        options = dict(self.algorithm)
        name = str(options.pop("name", ""))
        if name not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise ValueError(f"algorithm: no {name!r}{nearest(name, ALGORITHMS)}; there are {known}")
        return from_mapping(options, ALGORITHMS[name], "algorithm")

    def trainer(
        self, model: nn.Module, tokenizer: Any, records: Sequence[Record], held_out: Sequence[Record]
    ) -> RLHFTrainer:
        """`RLHFTrainer`."""
        prompts, others = prompts_of(records), prompts_of(held_out) or None
        reward: Reward | BradleyTerryModel
        measure = None
        if isinstance(self.reward, Checked):
            reward = self.reward.reward(records, held_out)
            if others:
                measure = greedy_metrics(
                    {"greedy_reward": reward},
                    others,
                    tokenizer,
                    max_new_tokens=self.train.max_new_tokens,
                    max_length=self.data.max_length,
                )
        else:
            reward = self.reward_model(self.reward)
        return RLHFTrainer(
            model,
            self.gradient(),
            reward,
            self.train,
            prompts,
            tokenizer,
            eval_dataset=others,
            compute_metrics=measure,
        )

    def reward_model(self, folder: str) -> BradleyTerryModel:
        """That is saved there."""
        reward = load_preference(folder)
        if not isinstance(reward, BradleyTerryModel):
            raise ValueError(
                f"{folder}: holds a {type(reward).__name__}, which has no rewards; a BradleyTerryModel is "
                "needed: train one with method: bradley_terry"
            )
        return reward
