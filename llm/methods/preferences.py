"""Methods that train a preference model on comparisons, or a reward model on answers that were marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from accelerate import Accelerator

from nashpref.llm.data import Outcome, Ranking, Record, Steps, to_pairs
from nashpref.llm.encoding import collate_pairs
from nashpref.llm.methods.base import Method, OneRun, Task, texts_of
from nashpref.llm.objectives import (
    EncodedRanking,
    LabelledSteps,
    Outcomes,
    PreferencePairs,
    RewardRankings,
    collate_rankings,
)
from nashpref.llm.preferences.backbone import HeadModel
from nashpref.llm.preferences.models import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    PreferenceModel,
)
from nashpref.llm.preferences.rewards import OutcomeRewardModel, ProcessRewardModel, RewardConfig

M = TypeVar("M", bound=HeadModel)


@dataclass(frozen=True, kw_only=True)
class PreferenceMethod(OneRun):
    """A preference model on pairs.

    Attributes:
        pooling: what stands for a sequence: the "last" state of a causal model, the "mean" of others.
    """

    kind: ClassVar[type[PreferenceModel]]
    pooling: Literal["last", "mean"] = "last"

    def head_options(self) -> dict[str, Any]:
        """Options of `PreferenceConfig`."""
        return {"pooling": self.pooling}

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded pairs."""
        model = new_head(self.kind, self, self.head_options(), records, accelerator.device)
        return Task(
            PreferencePairs(model),
            [model.encode(pair) for pair in to_pairs(records)],
            partial(collate_pairs, pad_id=model.encoder.pad_id),
            [model.encode(pair) for pair in to_pairs(held_out)],
            partial(save_head, model),
        )


@dataclass(frozen=True, kw_only=True)
class Pairwise(PreferenceMethod):
    """`PairwisePreferenceModel`."""

    kind: ClassVar[type[PreferenceModel]] = PairwisePreferenceModel


@dataclass(frozen=True, kw_only=True)
class General(PreferenceMethod):
    """`GeneralPreferenceModel`."""

    kind: ClassVar[type[PreferenceModel]] = GeneralPreferenceModel
    planes: int = 4
    prompt_scales: bool = False

    def __post_init__(self) -> None:
        if self.planes < 1:
            raise ValueError(f"planes = {self.planes}: it must be at least 1")

    def head_options(self) -> dict[str, Any]:
        """With the planes."""
        return {**super().head_options(), "planes": self.planes, "prompt_scales": self.prompt_scales}


@dataclass(frozen=True, kw_only=True)
class BradleyTerry(PreferenceMethod):
    """`BradleyTerryModel`.

    Attributes:
        k_wise: take rankings as they are, one batch element for each prompt, instead of as pairs.
    """

    kind: ClassVar[type[PreferenceModel]] = BradleyTerryModel
    k_wise: bool = False

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded pairs, or rankings."""
        if not self.k_wise:
            return super().task(records, held_out, accelerator)
        rankings = _rankings(records), _rankings(held_out)
        model = new_head(self.kind, self, self.head_options(), records, accelerator.device)
        examples = [
            [EncodedRanking(model.encoder.encode_group(r.prompt, r.completions), r.ranking) for r in each]
            for each in rankings
        ]
        pad_id = model.encoder.pad_id
        assert isinstance(model, BradleyTerryModel)
        return Task(
            RewardRankings(model),
            examples[0],
            partial(collate_rankings, pad_id=pad_id),
            examples[1],
            partial(save_head, model),
        )


@dataclass(frozen=True, kw_only=True)
class OutcomeReward(OneRun):
    """`OutcomeRewardModel`, on answers that are right or wrong."""

    kind: ClassVar[type[OutcomeRewardModel]] = OutcomeRewardModel

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded outcomes."""
        model = new_head(self.kind, self, {}, records, accelerator.device)
        examples = [_encoded(model.encode, each, Outcome) for each in (records, held_out)]
        return Task(Outcomes(model), examples[0], model.collate, examples[1], partial(save_head, model))


@dataclass(frozen=True, kw_only=True)
class ProcessReward(OneRun):
    """`ProcessRewardModel`, on answers whose steps are labelled.

    Attributes:
        separator: what steps are divided by where rewards are asked for.
        aggregate: of the steps' rewards.
    """

    kind: ClassVar[type[ProcessRewardModel]] = ProcessRewardModel
    separator: str = "\n"
    aggregate: Literal["product", "minimum"] = "product"

    def __post_init__(self) -> None:
        RewardConfig(separator=self.separator, aggregate=self.aggregate)  # it knows which are good

    def task(self, records: Sequence[Record], held_out: Sequence[Record], accelerator: Accelerator) -> Task:
        """Examples are encoded steps."""
        _check_labels(records)
        options = {"separator": self.separator, "aggregate": self.aggregate}
        model = new_head(self.kind, self, options, records, accelerator.device)
        examples = [_encoded(model.encode, each, Steps) for each in (records, held_out)]
        return Task(LabelledSteps(model), examples[0], model.collate, examples[1], partial(save_head, model))


def _rankings(records: Iterable[Record]) -> list[Ranking]:
    rankings = []
    for i, record in enumerate(records):
        if not isinstance(record, Ranking) or len(set(record.ranking)) == 1:
            what = "has only ties" if isinstance(record, Ranking) else f"is a {type(record).__name__}"
            raise ValueError(f"records[{i}] {what}: k_wise needs rankings of at least two places")
        rankings.append(record)
    return rankings


def _encoded(encode: Callable[[Any], Any], records: Iterable[Record], kind: type[Record]) -> list[Any]:
    encoded = []
    for i, record in enumerate(records):
        if not isinstance(record, kind):
            raise ValueError(f"records[{i}] is a {type(record).__name__}: {kind.__name__} is needed")
        try:
            encoded.append(encode(record))
        except ValueError as error:
            raise ValueError(f"records[{i}]: {error}") from None
    return encoded


def _check_labels(records: Iterable[Record]) -> None:
    """Whoever labels steps with 0 and 1 does not mean neutral by 0."""
    labels = {label for record in records if isinstance(record, Steps) for label in record.labels}
    if labels == {0, 1}:
        raise ValueError(
            "labels are 0 and 1, and never −1: 0 is a neutral step; if wrong ones are meant, label them "
            "false or −1"
        )


def new_head(
    kind: type[M], method: Method, options: Mapping[str, Any], records: Iterable[Record], device: torch.device
) -> M:
    """A model of this kind on the backbone that `method` names, with adapters if there are to be any."""
    from transformers import AutoModel

    backbone, tokenizer = method.model.load(AutoModel, texts_of(records), method.train.seed)
    model = kind.from_backbone(backbone, tokenizer, max_length=method.data.max_length, **options)
    if method.model.lora is not None:
        model.backbone = method.model.lora.adapt(model.backbone)
    torch.nn.Module.to(model, device)
    return model


def save_head(model: Any, folder: Path) -> None:
    """The model, adapters merged into its backbone, with its tokenizer."""
    if hasattr(model.backbone, "merge_and_unload"):
        model.backbone = model.backbone.merge_and_unload()
    model.save_pretrained(folder)
