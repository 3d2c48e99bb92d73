"""What trainers share that learn from a policy's own responses: models, prompts, a run, its evaluation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
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
from nashpref.llm.opponents import Opponents, Pool
from nashpref.llm.policies import Weights
from nashpref.llm.preferences.adapters import Preference
from nashpref.llm.training import TrainConfig, fit, make_accelerator
from nashpref.llm.turns import DialogueSpace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(TrainConfig):
    """How responses are drawn, beside how to train. How many steps there are, each trainer says itself.

    Attributes:
        batch_size: prompts of one optimizer step.
        reuse: optimizer steps on the same responses.
        samples: K, responses to each prompt from each policy.
        max_new_tokens: longest response.
        max_length: longest prompt and response together; the oldest prompt tokens are dropped.
        temperature, top_k: of sampling.
        offload: keep the weights of named policies on the CPU.
        lora: train adapters; the reference is then the model without them.
    """

    reuse: int = 1
    samples: int = 8
    max_new_tokens: int = 64
    max_length: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    offload: bool = False
    lora: Lora | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs != 1:
            raise ValueError(f"epochs = {self.epochs}: rounds decide how long training takes")


class OnlineTrainer(ABC):
    """Train a language model on responses of its own; argument names are TRL's.

    Args:
        model: a causal language model, which is trained in place, or a name or folder for `from_pretrained`.
        args: see the trainer's config.
        train_dataset: prompts: a file, a `datasets.Dataset`, rows with a field "prompt", or texts or chats.
        processing_class: the tokenizer; loaded with the model where that is a name.
        preference: `(prompts, a, b) -> probabilities`, which of two responses wins.
        mixture: see `CompletionSpace`.
        dialogues: what makes dialogues of single responses; None: responses are all.
        eval_dataset: prompts on which win-rates are measured, against `reference`, what training started
            from, `previous`, the policy at the evaluation before, and the pool.
        compute_metrics: called with the model, in which the policy's weights are then, at each evaluation;
            what it returns is logged. For a task whose responses can be listed: its exact gap.
        generate: sample with this in place of `nashpref.llm.sampling.sample`.
        pool: names of further opponents, each a model with the same tokenizer, or a folder or name.

    Raises:
        ValueError: a mistake in one of them; nothing has been written.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: OnlineConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None,
        preference: Preference,
        *,
        mixture: Literal["token", "sequence"] = "token",
        dialogues: Callable[[CompletionSpace], DialogueSpace] | None = None,
        eval_dataset: Any = None,
        compute_metrics: Callable[[nn.Module], Mapping[str, float]] | None = None,
        generate: Generate | None = None,
        pool: Pool | None = None,
    ) -> None:
        if isinstance(model, str | Path):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            processing_class = processing_class or AutoTokenizer.from_pretrained(model)
            model = AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)
        if processing_class is None:
            raise ValueError("processing_class: a model handed over as an object needs its tokenizer too")
        if args.max_steps is not None:
            raise ValueError(f"max_steps = {args.max_steps}: rounds decide how long training takes")
        if args.lora is not None:
            model = args.lora.adapt(cast("PreTrainedModel", model))
        self.args, self.tokenizer = args, processing_class
        self.accelerator = make_accelerator(args)
        self.model: nn.Module = nn.Module.to(model, self.accelerator.device)
        encoder = Encoder(processing_class, args.max_length)
        self.completions = CompletionSpace(
            self.model,
            encoder,
            preference,
            samples=args.samples,
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            mixture=mixture,
            generate=generate,
            seed=args.seed,
            offload=args.offload,
        )
        self.space = self.completions if dialogues is None else dialogues(self.completions)
        self.prompts = read_prompts(train_dataset, self.space)
        self.eval_prompts: Sequence[Asked] = ()
        if eval_dataset is not None:
            self.eval_prompts = read_prompts(eval_dataset, self.space)
        self.opponents: Opponents | None = None
        if self.eval_prompts:
            start, output = self.space.store.base, Path(args.output)
            self.opponents = Opponents(
                self.space,
                self.accelerator,
                self.eval_prompts,
                start,
                output,
                pool,
                batch_size=args.batch_size,
            )
        elif pool:
            raise ValueError(f"pool = {list(pool)} needs eval_dataset=, prompts to compare responses on")
        self.compute_metrics = compute_metrics

    objective: nn.Module
    """What is minimised; a `Progressing` one that counts the steps that were `taken`."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps of the whole run."""

    @abstractmethod
    def current(self) -> Weights:
        """The policy that training has come to."""

    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """What defines the run beside `args`, as JSON."""

    def train(
        self, *, options: Mapping[str, Any] | None = None, progress: bool = True
    ) -> list[dict[str, float]]:
        """Run to the end, going on from the newest checkpoint in `args.output`; the logged metrics.

        In the end the model has the weights of `current()`. `options` describe the run in its folder, in
        place of `options()`.

        Raises:
            ValueError, NonFiniteLoss, OSError, Interrupted: see `nashpref.llm.training.fit`.
        """
        args = self.args
        lengths = [len(asked) for asked in self.prompts]
        log = fit(
            self.objective,
            self.prompts,
            Repeated(LengthBuckets(lengths, args.batch_size, seed=args.seed), args.reuse),
            list,
            args,
            accelerator=self.accelerator,
            evaluate=self._evaluate if self.eval_prompts or self.compute_metrics else None,
            options=self.options() if options is None else options,
            steps=self.steps,
            progress=progress,
        )
        self.space.store.load(self.current())
        return log

    def evaluate(self) -> dict[str, float]:
        """Of `current()`: `win_rate/<opponent>` with `…/low` and `…/high`, and your metrics.

        All processes call it and share the prompts; `compute_metrics` is called by each. See
        `nashpref.llm.opponents.Opponents.win_rates`.
        """
        metrics: dict[str, float] = {}
        current = self.current()
        if self.opponents is not None:
            metrics |= self.opponents.win_rates(current, cast("int", self.objective.taken))
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

    def _evaluate(self) -> dict[str, float]:
        """In a run, whose folder keeps the responses that were drawn."""
        metrics = self.evaluate()
        if self.opponents is not None and self.accelerator.is_main_process:
            self.opponents.keep()
        return metrics


def read_prompts(dataset: Any, space: CompletionSpace | DialogueSpace) -> Sequence[Asked]:
    """Prompts of records, rows, or plain texts and chats."""
    rows = [] if isinstance(dataset, str | Path) else list(dataset)
    if rows and isinstance(rows[0], str | list | tuple):
        prompts: list[Text] = rows
    else:
        prompts = [record.prompt for record in read(rows or dataset)]
    return [space.open(i, prompt) for i, prompt in enumerate(prompts)]
