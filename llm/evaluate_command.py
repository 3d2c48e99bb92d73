"""The body of `nashpref evaluate FOLDER --data FILE`: from a saved model to its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator

from nashpref.llm.data import Demonstration, Pair, Ranking, Record, Records, Table, Text, read, to_pairs
from nashpref.llm.divergence import divergence
from nashpref.llm.encoding import Tokens, collate, truncation
from nashpref.llm.evaluation import (
    mean,
    pair_reports,
    perplexity,
    predictions,
    prompt_groups,
    transitivity,
    win_rates,
)
from nashpref.llm.evaluation_report import (
    Distance,
    Evaluation,
    PolicyEvaluation,
    Prediction,
    PreferenceEvaluation,
    Settings,
    table,
    to_json,
)
from nashpref.llm.intervals import proportion
from nashpref.llm.loading import PREFERENCES, Policy, architecture, load_policy, load_preference
from nashpref.llm.logprobs import completion_logps, quietly
from nashpref.llm.sampling import sample
from nashpref.policies import FloatArray
from nashpref.progress import progress_bar


def main(settings: Settings, json: str | None = None, figure: str | None = None) -> int:
    """Evaluate, print the table, and write what was asked for; the exit status.

    Raises:
        ValueError, OSError: see `evaluate`; nothing has been written.
    """
    if figure is not None and (kind := architecture(settings.model)) not in PREFERENCES:
        raise ValueError(f"--figure {figure}: it draws the calibration of a preference model, not a {kind}")
    evaluation = evaluate(settings, progress=True)
    print(table(evaluation))
    if json is not None:
        Path(json).write_text(to_json(evaluation) + "\n", encoding="utf-8")
    if figure is not None:
        from nashpref.paper_figs import reliability

        assert isinstance(evaluation, PreferenceEvaluation)
        reliability.figure(
            [
                (b.low, b.high, b.pairs, b.confidence, *dataclasses.astuple(b.frequency))
                for b in evaluation.overall.reliability
            ],
            figure,
        )
    return 0


def evaluate(settings: Settings, *, progress: bool = False) -> Evaluation:
    """Everything that can be measured of the model on the data; writes nothing.

    Raises:
        ValueError: a folder without a model of a known kind, or without a tokenizer; options that do not
            belong to it; bad data.
        OSError: a file that cannot be read.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the one
    kind = architecture(settings.model)
    if kind in PREFERENCES:
        for name in ("reference", "against", "preference"):
            if (value := getattr(settings, name)) is not None:
                raise ValueError(f"--{name} {value}: it is for policies; {settings.model} holds a {kind}")
    records = read(settings.data, columns=settings.columns, skip_bad=settings.skip_bad)
    rng = np.random.default_rng(settings.seed)
    if kind in PREFERENCES:
        return _evaluate_preference(settings, kind, records, rng, progress)
    return _evaluate_policy(settings, kind, records, rng, progress)


def _evaluate_preference(
    settings: Settings, kind: str, records: Records, rng: Generator, progress: bool
) -> PreferenceEvaluation:
    try:
        pairs = to_pairs(records)
    except ValueError as error:
        raise ValueError(f"{settings.data}: {error}") from None
    if not pairs:
        raise ValueError(f"{settings.data}: no pairs: the completions of every prompt are all equal")
    model = load_preference(settings.model)
    overall, by_source = pair_reports(
        predictions(model, pairs, progress=progress), pairs, rng, bins=settings.bins
    )
    several = [r for r in records if isinstance(r, Ranking | Table) and len(r.completions) >= 3]
    tables = [record.preferences for record in several if isinstance(record, Table)]
    matrices = []
    with progress_bar(progress, len(several), "prompt") as bar:
        for record in several:
            matrices.append(model.matrix(record.prompt, record.completions))
            bar(len(matrices))
    return PreferenceEvaluation(
        settings=settings,
        kind=kind,
        skipped=records.skipped,
        overall=overall,
        by_source=by_source,
        transitivity=transitivity(matrices, rng) if matrices else None,
        transitivity_of_tables=transitivity(tables, rng) if tables else None,
    )


def _evaluate_policy(
    settings: Settings, kind: str, records: Records, rng: Generator, progress: bool
) -> PolicyEvaluation:
    examples = _completions(records)
    sampled = settings.reference is not None or settings.against is not None
    if not examples and not sampled:
        raise ValueError(
            f"{settings.data}: no demonstrations or pairs: without completions, give --reference, or "
            "--against and --preference"
        )
    policy = load_policy(settings.model)
    reference = None if settings.reference is None else load_policy(settings.reference)
    opponent = None if settings.against is None else load_policy(settings.against)
    preference = None if settings.preference is None else load_preference(settings.preference)
    if reference is not None:
        ours, theirs = policy.encoder.tokenizer.get_vocab(), reference.encoder.tokenizer.get_vocab()
        if ours != theirs:
            raise ValueError(
                f"--reference {settings.reference}: its tokenizer is another one than that of "
                f"{settings.model}; the KL is between distributions over the same tokens"
            )
    predicted = {
        name: _predict(policy, each, settings.batch_size, rng, progress) for name, each in examples.items()
    }
    evaluation = PolicyEvaluation(settings=settings, kind=kind, skipped=records.skipped, perplexity=predicted)
    if not sampled:
        return evaluation

    prompts = _prompts(records, settings.prompts, rng)
    generator = torch.Generator().manual_seed(settings.seed)
    groups = np.repeat(np.arange(len(prompts)), settings.samples)
    texts, sequences = _play(policy, reference, prompts, settings, generator, progress)
    lengths, unfinished, kl, plain = sequences.T
    if reference is not None:
        distance = Distance(mean(kl, groups, rng), mean(plain, groups, rng))
        evaluation = dataclasses.replace(evaluation, distance=distance)
    if opponent is not None and preference is not None:
        others, _ = _play(opponent, None, prompts, settings, generator, progress)
        rates = win_rates(preference, prompts, texts, others, progress=progress)
        evaluation = dataclasses.replace(evaluation, win_rate=proportion(rates, range(len(prompts))))
    return dataclasses.replace(
        evaluation,
        prompts=len(prompts),
        length=mean(lengths, groups, rng),
        unfinished=proportion(unfinished, groups),
    )


def _completions(records: Sequence[Record]) -> dict[str, list[tuple[Text, Text]]]:
    """Prompts with completions, by what these are."""
    examples: dict[str, list[tuple[Text, Text]]] = {"demonstrations": [], "chosen": [], "rejected": []}
    for record in records:
        if isinstance(record, Demonstration):
            examples["demonstrations"].append((record.prompt, record.completion))
        elif isinstance(record, Pair):
            examples["chosen"].append((record.prompt, record.chosen))
            examples["rejected"].append((record.prompt, record.rejected))
    return {name: each for name, each in examples.items() if each}


def _predict(
    policy: Policy, examples: Sequence[tuple[Text, Text]], batch_size: int, rng: Generator, progress: bool
) -> Prediction:
    encoded = []
    for i, (prompt, completion) in enumerate(examples):
        try:
            encoded.append(policy.encoder.encode(prompt, completion))
        except ValueError as error:
            raise ValueError(f"completion {i}: {error}") from None
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    scores = np.empty((len(encoded), 2))
    with progress_bar(progress, len(encoded), "completion") as bar, quietly(policy.model):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            tokens = collate([encoded[i] for i in part], policy.encoder.pad_id).to(policy.model.device)
            scores[part, 0] = completion_logps(policy.model, tokens).cpu()
            scores[part, 1] = tokens.completion_mask.sum(dim=1).cpu()
            bar(start + len(part))
    lost = truncation(encoded)
    groups = prompt_groups(prompt for prompt, _ in examples)
    return Prediction(
        len(encoded),
        int(scores[:, 1].sum()),
        max(lost.prompts, lost.completions),
        perplexity(scores[:, 0], scores[:, 1], groups, rng),
    )


def _prompts(records: Sequence[Record], count: int | None, rng: Generator) -> list[Text]:
    """Every prompt once, or `count` of them."""
    groups = prompt_groups(record.prompt for record in records)
    first = np.unique(groups, return_index=True)[1]
    if count is not None and count < len(first):
        first = np.sort(rng.choice(first, count, replace=False))
    return [records[i].prompt for i in first.tolist()]


def _play(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[Text],
    settings: Settings,
    generator: torch.Generator,
    progress: bool,
) -> tuple[list[list[str]], FloatArray]:
    """Samples for each prompt, and what `_measure` finds of them."""
    room = policy.encoder.max_length
    if room is not None and settings.max_new_tokens >= room:
        raise ValueError(f"--max-new-tokens {settings.max_new_tokens}: the policy reads {room} tokens in all")
    texts: list[list[str]] = []
    rows = []
    size = max(1, settings.batch_size // settings.samples)
    with progress_bar(progress, len(prompts), "prompt") as bar:
        for start in range(0, len(prompts), size):
            drawn = sample(
                policy.model,
                policy.encoder,
                prompts[start : start + size],
                settings.samples,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                generator=generator,
            )
            texts += drawn.texts
            rows.append(_measure(policy, reference, drawn.tokens, settings.temperature))
            bar(len(texts))
    return texts, np.concatenate(rows)


def _measure(policy: Policy, reference: Policy | None, tokens: Tokens, temperature: float) -> FloatArray:
    """Of each sample its length, whether it was cut, and both estimates of the KL: `(N, 4)`."""
    lengths = tokens.completion_mask.sum(dim=1)
    last = tokens.attention_mask.sum(dim=1, keepdim=True) - 1
    unfinished = tokens.input_ids.gather(1, last).squeeze(1) != policy.encoder.end_id
    kl = plain = torch.zeros(len(lengths))
    if reference is not None:
        found = divergence(policy.model, reference.model, tokens, temperature=temperature)
        kl, plain = found.kl.sum(dim=1), found.log_ratio.sum(dim=1)
    return np.column_stack([each.double().cpu() for each in (lengths, unfinished, kl, plain)])
