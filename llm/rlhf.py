"""`RLHFTrainer`: the policy gradients of RLHF, on the loop that the Nash methods run on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from nashpref.llm.algorithms import Algorithm
from nashpref.llm.completions import Generate
from nashpref.llm.online import OnlineConfig, OnlineTrainer
from nashpref.llm.opponents import Pool
from nashpref.llm.policies import Weights
from nashpref.llm.preferences.adapters import Reward, from_reward
from nashpref.llm.preferences.models import BradleyTerryModel
from nashpref.llm.reward_objective import RewardObjective, rewards_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class RLHFConfig(OnlineConfig):
    """How a reward is maximised. The weight of the KL and whatever else an algorithm has are the algorithm's.

    Attributes:
        rounds: how often responses are drawn; each time `reuse` optimizer steps are taken.
    """

    rounds: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}: it must be at least 1")


class RLHFTrainer(OnlineTrainer):
    """Train a language model to maximise a reward; its argument names are TRL's.

    ```python
    trainer = RLHFTrainer(model, GRPO(beta=0.05), reward, RLHFConfig(…), "prompts.jsonl", tokenizer)
    trainer.train()
    ```

    Args:
        model: a causal language model, which is trained in place, or a name or folder for `from_pretrained`.
        algorithm: one of `nashpref.llm.algorithms`.
        reward: `(prompts, responses) -> numbers`: plain Python that checks a response, a reward model of
            `nashpref.llm.preferences`, or a `BradleyTerryModel`.
        args: see `RLHFConfig`.
        train_dataset, processing_class, compute_metrics, generate, pool: see `OnlineTrainer`.
        eval_dataset: prompts on which the reward is measured, and win-rates, of which a reward says
            `σ(r(y) − r(y'))`.

    Raises:
        ValueError: a mistake in one of them; nothing has been written.
    """

    objective: RewardObjective

    def __init__(
        self,
        model: str | Path | nn.Module,
        algorithm: Algorithm,
        reward: Reward | BradleyTerryModel,
        args: RLHFConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        eval_dataset: Any = None,
        compute_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        generate: Generate | None = None,
        pool: Pool | None = None,
    ) -> None:
        function: Reward = reward.rewards if isinstance(reward, BradleyTerryModel) else reward
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class,
            from_reward(function),
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            generate=generate,
            pool=pool,
        )
        self.algorithm, self.reward, self.rounds = algorithm, function, args.rounds
        self.objective = RewardObjective(self.completions, algorithm, function, reuse=args.reuse)

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        return self.rounds * self.args.reuse

    def current(self) -> Weights:
        """The network as it is."""
        return self.space.store.take()

    def options(self) -> Mapping[str, Any]:
        """The algorithm."""
        name = type(self.algorithm).__name__
        return {"algorithm": {"name": name, **dataclasses.asdict(self.algorithm)}}

    def evaluate(self) -> dict[str, float]:
        """As in `OnlineTrainer`, and the `reward` on its prompts."""
        metrics = super().evaluate()
        if self.opponents is not None:
            prompts, (_, texts) = self.eval_prompts, self.opponents.latest
            metrics["reward"] = float(rewards_of(self.reward, prompts, texts).mean())
        return metrics
