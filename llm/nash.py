"""`NashTrainer`: any update rule of the exact core, on a language model, against any preference."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from nashpref.llm.batching import LengthBuckets, Repeated
from nashpref.llm.checkpoints import write_folder
from nashpref.llm.completions import Asked, CompletionSpace, Generate
from nashpref.llm.data import Text, read
from nashpref.llm.encoding import Encoder
from nashpref.llm.inputs import Lora
from nashpref.llm.interpreter import Estimator, MirrorObjective
from nashpref.llm.policies import Blend, Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.training import TrainConfig, fit, make_accelerator
from nashpref.mirror import UpdateRule

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATION = 1 << 16  # streams of random numbers that no opponent of a step has


@dataclass(frozen=True, kw_only=True)
class NashConfig(TrainConfig):
    """How a rule is run on a language model. The step size and the weight of the KL are the rule's.

    Attributes:
        rounds: iterations t of the rule.
        updates: optimizer steps for each mirror step with payoffs; `epochs` and `max_steps` follow from both.
        batch_size: prompts of one optimizer step.
        reuse: optimizer steps on the same responses, a divisor of `updates`.
        samples: responses to each prompt from each policy.
        batch_responses: of these, how many an optimizer step takes; None: all.
        max_new_tokens: longest response.
        max_length: longest prompt and response together; the oldest prompt tokens are dropped.
        temperature, top_k: of sampling.
        estimator, sampler: see `nashpref.llm.interpreter.MirrorObjective`.
        mixture: see `nashpref.llm.completions.CompletionSpace`.
        offload: keep the weights of named policies on the CPU.
        lora: train adapters; the reference is then the model without them.
    """

    rounds: int
    updates: int = 1
    reuse: int = 1
    samples: int = 8
    batch_responses: int | None = None
    max_new_tokens: int = 64
    max_length: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    estimator: Estimator = "regression"
    sampler: str = "current"
    mixture: Literal["token", "sequence"] = "token"
    offload: bool = False
    lora: Lora | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.updates < 1:
            raise ValueError(f"rounds = {self.rounds}, updates = {self.updates}: 1 of each is the least")
        if self.epochs != 1:
            raise ValueError(f"epochs = {self.epochs}: rounds and updates decide how long training takes")
        if self.estimator == "on_policy" and self.mixture == "sequence":
            raise ValueError(
                "estimator = 'on_policy' needs responses that are really drawn from the opponent, and those "
                "of mixture = 'sequence' are only weighted: use 'regression'"
            )


class NashTrainer:
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
        train_dataset: prompts: a file, a `datasets.Dataset`, rows with a field "prompt", or texts or chats.
        processing_class: the tokenizer; loaded with the model where that is a name.
        eval_dataset: prompts on which the win-rate against the start is measured.
        compute_metrics: called with the model, in which the policy's weights are then, at each evaluation;
            what it returns is logged. For a task whose responses can be listed: its exact gap.
        generate: sample with this in place of `nashpref.llm.sampling.sample`.

    Raises:
        ValueError: a mistake in one of them; nothing has been written.
    """

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
    ) -> None:
        if isinstance(model, str | Path):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)
        if processing_class is None:
            raise ValueError("processing_class: a model handed over as an object needs its tokenizer too")
        if args.lora is not None:
            model = args.lora.adapt(cast("PreTrainedModel", model))
        self.args, self.rule, self.tokenizer = args, rule, processing_class
        self.accelerator = make_accelerator(args)
        self.model: nn.Module = nn.Module.to(model, self.accelerator.device)
        encoder = Encoder(processing_class, args.max_length)
        self.space = CompletionSpace(
            self.model,
            encoder,
            preference,
            samples=args.samples,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            mixture=args.mixture,
            generate=generate,
            seed=args.seed,
            offload=args.offload,
        )
        self.objective = MirrorObjective(
            self.space,
            rule,
            updates=args.updates,
            reuse=args.reuse,
            batch_responses=args.batch_responses,
            estimator=args.estimator,
            sampler=args.sampler,
        )
        self._start = self.space.store.base()
        self.prompts = _asked(train_dataset, encoder, args.max_new_tokens)
        self.eval_prompts = () if eval_dataset is None else _asked(eval_dataset, encoder, args.max_new_tokens)
        self.compute_metrics = compute_metrics

    def train(self, *, progress: bool = True) -> list[dict[str, float]]:
        """Run all rounds, going on from the newest checkpoint in `args.output`; the logged metrics.

        In the end the model has the weights of the rule's `current`.

        Raises:
            ValueError, NonFiniteLoss, OSError, Interrupted: see `nashpref.llm.training.fit`.
        """
        args = dataclasses.replace(self.args, max_steps=self.steps)
        evaluate = self.evaluate if self.eval_prompts or self.compute_metrics else None
        lengths = [len(asked) for asked in self.prompts]
        log = fit(
            self.objective,
            self.prompts,
            Repeated(LengthBuckets(lengths, args.batch_size, seed=args.seed), args.reuse),
            list,
            args,
            accelerator=self.accelerator,
            evaluate=evaluate,
            options={"rule": _describe(self.rule)},
            progress=progress,
        )
        self.space.store.load(self._current())
        return log

    @property
    def steps(self) -> int:
        """Optimizer steps of all rounds."""
        fits = (sum(bool(step.payoffs) for step in self.rule.steps(t)) for t in range(self.args.rounds))
        return self.args.updates * sum(fits)

    def evaluate(self) -> dict[str, float]:
        """Of `current` after the last whole round: `win_rate` against the start, and your metrics."""
        metrics: dict[str, float] = {}
        current = self._current()
        if self.eval_prompts:
            metrics["win_rate"] = self._win_rate(current, self._start)
        if self.compute_metrics is not None:
            with self.space.store.loaded(current):
                metrics |= self.compute_metrics(self.model)
        return metrics

    def save_model(self, output: str | Path) -> None:
        """The model, adapters merged, and its tokenizer, in a folder that does not exist yet."""

        def write(folder: Path) -> None:
            model: Any = self.model
            if hasattr(model, "merge_and_unload"):
                model = copy.deepcopy(model).merge_and_unload()
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        if self.accelerator.is_main_process:
            write_folder(Path(output), write)
        self.accelerator.wait_for_everyone()

    def _current(self) -> Weights:
        policy = self.objective.policy("current")
        assert not isinstance(policy, Blend)  # no rule ends a round with a mixture
        return policy

    def _win_rate(self, policy: Weights, opponent: Weights) -> float:
        total = 0.0
        for start in range(0, len(self.eval_prompts), self.args.batch_size):
            prompts = self.eval_prompts[start : start + self.args.batch_size]
            ours = self.space.draw(policy, prompts, 0, EVALUATION)
            theirs = self.space.draw(opponent, prompts, 0, EVALUATION + 1)
            total += float(self.space.win_rates(ours, theirs).mean(dim=(1, 2)).sum())
        return total / len(self.eval_prompts)


def _asked(dataset: Any, encoder: Encoder, room: int) -> list[Asked]:
    """Prompts of records, rows, or plain texts and chats."""
    rows = [] if isinstance(dataset, str | Path) else list(dataset)
    if rows and isinstance(rows[0], str | list | tuple):
        prompts: list[Text] = rows
    else:
        prompts = [record.prompt for record in read(rows or dataset)]
    lengths = [len(encoder.encode_prompt(prompt, room=room)) for prompt in prompts]
    return [Asked(i, prompt, n) for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))]


def _describe(rule: UpdateRule) -> dict[str, Any]:
    """The rule in JSON; of a schedule, its values at the first rounds."""
    described: dict[str, Any] = {"name": type(rule).__name__}
    options: Any = rule if dataclasses.is_dataclass(rule) else None
    for field in dataclasses.fields(options) if options else ():
        value = getattr(rule, field.name)
        described[field.name] = [float(value(t)) for t in range(8)] if callable(value) else value
    return described
