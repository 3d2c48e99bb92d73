"""`NashTrainer`: any update rule of the exact core, on a language model, against any preference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from nashpref.llm.completions import Generate
from nashpref.llm.dialogues import Environment
from nashpref.llm.interpreter import Estimator, MirrorObjective
from nashpref.llm.online import OnlineConfig, OnlineTrainer
from nashpref.llm.opponents import Pool
from nashpref.llm.policies import Blend, Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.turns import DialogueSpace
from nashpref.mirror import Geometry, UpdateRule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class NashConfig(OnlineConfig):
    """How a rule is run on a language model. The step size and the weight of the KL are the rule's.

    Attributes:
        rounds: iterations t of the rule.
        updates: optimizer steps for each mirror step with payoffs.
        reuse: optimizer steps on the same responses, a divisor of `updates`.
        batch_responses: of the `samples` responses to a prompt, how many an optimizer step takes; None: all.
        estimator, sampler: see `nashpref.llm.interpreter.MirrorObjective`.
        mixture: see `nashpref.llm.completions.CompletionSpace`.
        lines, every_turn: of dialogues, see `nashpref.llm.turns.DialogueSpace`.
    """

    rounds: int
    updates: int = 1
    batch_responses: int | None = None
    estimator: Estimator = "regression"
    sampler: str = "current"
    mixture: Literal["token", "sequence"] = "token"
    lines: int = 1
    every_turn: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.updates < 1:
            raise ValueError(f"rounds = {self.rounds}, updates = {self.updates}: 1 of each is the least")
        if self.samples < 2:
            raise ValueError(f"samples = {self.samples}: responses are compared, so at least 2 are needed")
        if self.estimator == "on_policy" and self.mixture == "sequence":
            raise ValueError(
                "estimator = 'on_policy' needs responses that are really drawn from the opponent, and those "
                "of mixture = 'sequence' are only weighted: use 'regression'"
            )


class NashTrainer(OnlineTrainer):
    """Train a language model by an update rule; its argument names are TRL's.

    ```python
    trainer = NashTrainer(model, rule=npf.NashMD(beta=0.1), preference=preference, args=NashConfig(…),
                          train_dataset="prompts.jsonl", processing_class=tokenizer)
    trainer.train()
    ```

    Args:
        model: a causal language model, which is trained in place, or a name or folder for `from_pretrained`.
        rule: any `nashpref.UpdateRule`, the same objects that `nashpref.solve` takes.
        preference: `(prompts, a, b) -> probabilities`: a preference model, or one of the adapters of
            `nashpref.llm.preferences`.
        args: see `NashConfig`.
        train_dataset, processing_class, eval_dataset, compute_metrics, generate, pool: see `OnlineTrainer`.
        environment: the other side of a dialogue, for many turns, see `nashpref.llm.dialogues`; a response is
            then a dialogue, as messages, and the prompt what it opens with. The rule's geometry decides what
            a turn is worth, as on a `nashpref.MarkovGame`: MTPO, MTPO-τ, MPO, OMPO and all others run.

    Raises:
        ValueError: a mistake in one of them; nothing has been written.
    """

    objective: MirrorObjective

    def __init__(
        self,
        model: str | Path | nn.Module,
        rule: UpdateRule,
        preference: Preference,
        args: NashConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        eval_dataset: Any = None,
        compute_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        generate: Generate | None = None,
        pool: Pool | None = None,
        environment: Environment | None = None,
    ) -> None:
        dialogues = None
        if environment is not None:
            if args.estimator != "regression":
                raise ValueError(
                    f"estimator = {args.estimator!r} is of single responses: dialogues need 'regression'"
                )
            geometry = Geometry(getattr(rule, "geometry", Geometry.OCCUPANCY))
            beta = float(getattr(rule, "beta", 0.0))
            dialogues = partial(
                DialogueSpace,
                environment=environment,
                geometry=geometry,
                beta=beta,
                lines=args.lines,
                every_turn=args.every_turn,
            )
        super().__init__(
            model,
            args,
            train_dataset,
            processing_class,
            preference,
            mixture=args.mixture,
            dialogues=dialogues,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            generate=generate,
            pool=pool,
        )
        self.rule, self.rounds, self.updates = rule, args.rounds, args.updates
        self.objective = MirrorObjective(
            self.space,
            rule,
            rounds=args.rounds,
            updates=args.updates,
            reuse=args.reuse,
            batch_responses=args.batch_responses,
            estimator=args.estimator,
            sampler=args.sampler,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        fits = (sum(bool(step.payoffs) for step in self.rule.steps(t)) for t in range(self.rounds))
        return self.updates * sum(fits)

    def current(self) -> Weights:
        """The rule's `current` after the last whole round."""
        policy = self.objective.policy("current")
        assert not isinstance(policy, Blend)  # no rule ends a round with a mixture
        return policy

    def options(self) -> Mapping[str, Any]:
        """The rule."""
        return {"rule": _describe(self.rule, self.rounds)}


def _describe(rule: UpdateRule, rounds: int) -> dict[str, Any]:
    """The rule in JSON; of a callable, its values in all rounds."""
    described: dict[str, Any] = {"name": type(rule).__name__}
    options: Any = rule if dataclasses.is_dataclass(rule) else None
    for field in dataclasses.fields(options) if options else ():
        value = getattr(rule, field.name)
        described[field.name] = [float(value(t)) for t in range(rounds)] if callable(value) else value
    return described
