"""What `nashpref evaluate` is asked and finds, and how it is told: a table to read, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from nashpref.analysis import CONFIDENCE
from nashpref.llm.evaluation import PairReport, TransitivityReport
from nashpref.llm.intervals import Estimate


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is evaluated, and on what.

    Attributes:
        model: a folder with a preference model or a causal language model, and its tokenizer.
        data: a file of records, read by `nashpref.llm.data.read`.
        reference: of a policy, the folder of the one whose distance (KL) is wanted.
        against, preference: of a policy, the folders of its opponent and of the preference that decides.
        samples: completions of each prompt, of each policy.
        prompts: how many of the prompts to sample for, drawn at random; None: all.
        max_new_tokens, temperature: of the samples.
        bins: of the calibration.
        batch_size: sequences at once.
        seed: of the samples, the prompts and the bootstrap.
        columns: field → column, where they differ.
        skip_bad: leave bad rows out, and count them.
    """

    model: str
    data: str
    reference: str | None = None
    against: str | None = None
    preference: str | None = None
    samples: int = 4
    prompts: int | None = None
    max_new_tokens: int = 128
    temperature: float = 1.0
    bins: int = 10
    batch_size: int = 16
    seed: int = 0
    columns: dict[str, str] | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "prompts", "max_new_tokens", "bins", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must be ≥ 0")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"--temperature {self.temperature}: it must be finite and positive")
        if (self.against is None) != (self.preference is None):
            raise ValueError("--against and --preference: a win-rate needs both, an opponent and who decides")


@dataclass(frozen=True, kw_only=True)
class PreferenceEvaluation:
    """A preference model on labelled pairs.

    Attributes:
        kind: the class of the model.
        skipped: bad rows that were left out.
        overall, by_source: on the pairs, those of rankings and tables included.
        transitivity: of the model on rankings and tables of at least three completions, if there are any.
        transitivity_of_tables: of the data's own tables among them.
    """

    settings: Settings
    kind: str
    skipped: int
    overall: PairReport
    by_source: dict[str, PairReport]
    transitivity: TransitivityReport | None
    transitivity_of_tables: TransitivityReport | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """How well a policy predicts completions; `truncated` counts those that exceed its context."""

    completions: int
    tokens: int
    truncated: int
    perplexity: Estimate


@dataclass(frozen=True, slots=True)
class Distance:
    """`KL(π‖μ)` of whole completions: see `nashpref.llm.divergence.divergence`.

    Attributes:
        kl: from the KL at every token, the more precise.
        plain: the mean of `log π(y|x)/μ(y|x)`.
    """

    kl: Estimate
    plain: Estimate


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluation:
    """A causal language model.

    Attributes:
        kind: the class of the model.
        skipped: bad rows that were left out.
        perplexity: of demonstrations, and of the chosen and the rejected completions of pairs.
        prompts: for how many there are samples.
        length: tokens of a sample, on average.
        unfinished: share of samples that were cut at `max_new_tokens`.
        distance: from the reference.
        win_rate: against the opponent.
    """

    settings: Settings
    kind: str
    skipped: int
    perplexity: dict[str, Prediction]
    prompts: int = 0
    length: Estimate | None = None
    unfinished: Estimate | None = None
    distance: Distance | None = None
    win_rate: Estimate | None = None


Evaluation = PreferenceEvaluation | PolicyEvaluation


def to_json(evaluation: Evaluation) -> str:
    """Everything, with null for the ends of intervals that are not known."""
    content = dataclasses.asdict(evaluation) | {"confidence": CONFIDENCE}
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(evaluation: Evaluation) -> str:
    """What is printed."""
    lines = (
        _preference_lines(evaluation)
        if isinstance(evaluation, PreferenceEvaluation)
        else _policy_lines(evaluation)
    )
    skipped = [f"{evaluation.skipped} bad rows left out"] if evaluation.skipped else []
    return "\n".join(
        [
            f"{evaluation.kind} in {evaluation.settings.model} on {evaluation.settings.data}",
            *skipped,
            "",
            *lines,
            "",
            f"[ ]: {CONFIDENCE:.0%} intervals over prompts",
        ]
    )


def _preference_lines(evaluation: PreferenceEvaluation) -> list[str]:
    names, reports = ["all"], [evaluation.overall]
    if len(evaluation.by_source) > 1:
        names += [source or "(no source)" for source in evaluation.by_source]
        reports += evaluation.by_source.values()
    lines = _columns(
        ["source", *names],
        ["pairs", *(str(r.pairs) for r in reports)],
        ["accuracy", *(_cell(r.accuracy) for r in reports)],
        ["log-loss", *(_cell(r.log_loss) for r in reports)],
        ["Brier", *(_cell(r.brier) for r in reports)],
        ["ECE", *(_cell(r.calibration_error) for r in reports)],
        ["debiased", *(f"{r.debiased_calibration_error:.3f}" for r in reports)],
    )
    bins = evaluation.overall.reliability
    lines += [
        "",
        f"{evaluation.overall.prompts} prompts; "
        f"the accuracy leaves out {evaluation.overall.undecided} undecided pairs",
    ]
    lines += ["", "calibration: what was said of the favourite of a pair, and what happened"]
    lines += _columns(
        ["bin", *(f"{b.low:.2f}–{b.high:.2f}" for b in bins)],
        ["pairs", *(str(b.pairs) for b in bins)],
        ["said", *(f"{b.confidence:.3f}" for b in bins)],
        ["happened", *(_cell(b.frequency) for b in bins)],
    )
    found = {"model": evaluation.transitivity, "labels": evaluation.transitivity_of_tables}
    known = {name: report for name, report in found.items() if report is not None}
    if known:
        lines += ["", "beyond a ranking: several responses to a prompt"]
        lines += _columns(
            ["of", *known],
            ["prompts", *(str(r.prompts) for r in known.values())],
            ["responses", *(f"{r.responses:.1f}" for r in known.values())],
            ["strict 3-cycles", *(_cell(r.cycles) for r in known.values())],
            ["Condorcet winner", *(_cell(r.condorcet) for r in known.values())],
            ["Nash support", *(_cell(r.support, 2) for r in known.values())],
            ["gap of favourite", *(_cell(r.favourite_gap) for r in known.values())],
        )
        for name, report in known.items():
            if report.without_favourite:
                lines.append(f"{name}: {report.without_favourite} prompts have no Bradley–Terry favourite")
    return lines


def _policy_lines(evaluation: PolicyEvaluation) -> list[str]:
    lines: list[str] = []
    found, settings = evaluation.perplexity, evaluation.settings
    if found:
        lines += _columns(
            ["completions", *found],
            ["number", *(str(p.completions) for p in found.values())],
            ["tokens", *(str(p.tokens) for p in found.values())],
            ["perplexity", *(_cell(p.perplexity) for p in found.values())],
        )
        if truncated := sum(p.truncated for p in found.values()):
            lines.append(f"{truncated} completions exceed the model's context and are not read whole")
    if evaluation.prompts:
        lines += [
            *([""] if lines else []),
            f"{settings.samples} samples for each of {evaluation.prompts} prompts, "
            f"temperature {settings.temperature:g}",
            f"tokens: {_cell(evaluation.length, 1)}; "
            f"cut at {settings.max_new_tokens}: {_cell(evaluation.unfinished)}",
        ]
    if evaluation.distance is not None:
        lines += [
            f"KL from {settings.reference}: {_cell(evaluation.distance.kl)} nats per completion",
            f"  by the plain estimate: {_cell(evaluation.distance.plain)}",
        ]
    if evaluation.win_rate is not None:
        lines.append(
            f"win-rate against {settings.against}: {_cell(evaluation.win_rate)}, "
            f"decided by {settings.preference}"
        )
    return lines


def _columns(*columns: list[str]) -> list[str]:
    """Columns side by side, the first flush left, the others flush right; a rule under the header."""
    first, *rest = [
        [cell.ljust(max(map(len, c))) if c is columns[0] else cell.rjust(max(map(len, c))) for cell in c]
        for c in columns
    ]
    lines = ["  ".join(row) for row in zip(first, *rest, strict=True)]
    return [lines[0], "─" * len(lines[0]), *lines[1:]]


def _cell(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return "—"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return f"{estimate.value:.{digits}f}{interval}"
