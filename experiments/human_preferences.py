"""Which of two answers a person preferred, told by preference models on the real pairs of a file.

    python -m nashpref.experiments.human_preferences PAIRS.jsonl --encoder FOLDER

Every method sees the same folds, and is never tested on a dialogue that begins like one it has learnt from.
Baselines are the length of an answer, and its words. Preference models are learnt from scratch, and as heads
on a pretrained encoder that is kept as it is; each also with the length, of which a mean over tokens knows
little. The file is read where it is: what is written are numbers alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nashpref.experiments import draw
from nashpref.experiments.common import Table, save
from nashpref.experiments.human_models import (
    KINDS,
    Learner,
    Tiny,
    Training,
    frozen,
    read_states,
    scratch,
)
from nashpref.llm.data import Pair, Text, read, to_pairs
from nashpref.llm.preferences import BradleyTerryModel, GeneralPreferenceModel, PairwisePreferenceModel
from nashpref.policies import FloatArray
from nashpref.progress import progress_bar

IntArray = NDArray[np.int64]

NAME = "human_preferences"
LENGTH, WORDS = "length", "TF-IDF + length"
INTERVAL = (2.5, 97.5)  # percentiles

# Chosen by cross-validation inside the training part of the first fold of HH-RLHF, and kept for all else.
TINY = Tiny(vocabulary=6000, layers=1, width=64, dropout=0.3)
SCRATCH = Training(epochs=2, learning_rate=2e-3, weight_decay=1.0)
HEAD = Training(epochs=10, learning_rate=1e-2, weight_decay=1.0)
GENERAL_HEAD = Training(epochs=3, learning_rate=1e-3, weight_decay=1.0)  # with more it overfits


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on.

    Attributes:
        data: the file of pairs.
        encoder: folder of a pretrained encoder; None leaves it out.
        folds: parts of the data; `tested`: of these, how many are tested on.
        members: of a committee, each learning from all but one part of what there is to learn from.
        limit: only the first so many pairs.
        regularisation: of TF-IDF, the `C` of scikit-learn.
        max_tokens: the longest sequence.
        tiny, scratch: the model from scratch and its training; it reads the answers alone.
        layers: the lowest ones of the encoder, which are used; `head`, `general_head`: training on them.
        resamples: of the bootstrap.
        seed: of everything that is drawn.
    """

    data: str
    encoder: str | None = None
    folds: int = 5
    tested: int = 5
    members: int = 5
    limit: int | None = None
    regularisation: float = 1.0
    max_tokens: int = 256
    tiny: Tiny = TINY
    scratch: Training = SCRATCH
    layers: int = 3
    head: Training = HEAD
    general_head: Training = GENERAL_HEAD
    resamples: int = 2000
    seed: int = 0


QUICK: dict[str, Any] = {
    "tested": 1,
    "members": 2,
    "limit": 400,
    "tiny": replace(TINY, vocabulary=1000, width=32),
    "scratch": replace(SCRATCH, epochs=1),
}


class Data(NamedTuple):
    """N pairs, Pr(the first answer is preferred), the group of each, and `log` of the ratio of lengths."""

    pairs: list[Pair]
    labels: FloatArray
    groups: IntArray
    lengths: FloatArray


class Method(NamedTuple):
    """How preferences are told: pairs to learn from, pairs to judge → the logits of each variant."""

    variants: Sequence[str]
    predict: Callable[[IntArray, IntArray], Sequence[FloatArray]]


def run(settings: Settings, *, progress: bool = False) -> Mapping[str, Table]:
    """`results`: of each method the accuracy (half for a logit of 0), its difference to that of `WORDS` on
    the same pairs, and the log-loss, with intervals by a bootstrap of the groups. `predictions`: fold, group,
    label and all logits of the pairs tested. Pairs without a winner are learnt from where labels are soft,
    and never tested.

    Raises:
        ValueError: fewer groups than folds.
    """
    data = load(settings)
    fold = partition(data.groups, settings.folds, settings.seed)
    decided = data.labels != 0.5
    methods = make_methods(data, settings)
    names = [name for method in methods for name in method.variants]
    logits = {name: np.full(len(fold), np.nan) for name in names}
    with progress_bar(progress, settings.tested * len(methods), "method") as bar:
        for k in range(settings.tested):
            known, judged = np.flatnonzero(fold != k), np.flatnonzero((fold == k) & decided)
            for done, method in enumerate(methods, start=k * len(methods) + 1):
                for name, values in zip(method.variants, method.predict(known, judged), strict=True):
                    logits[name][judged] = values
                bar(done)
    tested = np.flatnonzero((fold < settings.tested) & decided)
    logits = {name: values[tested] for name, values in logits.items()}
    labels, groups = data.labels[tested], data.groups[tested]
    kept = {"pair": tested, "fold": fold[tested], "group": groups, "label": labels}
    return {"results": summary(logits, labels, groups, settings), "predictions": kept | logits}


def load(settings: Settings) -> Data:
    """The pairs of the file; those that begin with the same turn (in HH-RLHF, of a person) are one group.

    Dialogues that branched from one opening share most of their text: apart, they would tell of each other.
    """
    pairs = to_pairs(read(settings.data, allow_empty=True))[: settings.limit]
    openings = [_text(pair.prompt).split("\n\nAssistant:")[0].strip().lower() for pair in pairs]
    groups = np.unique(openings, return_inverse=True)[1]
    lengths = [np.log1p(len(_text(p.chosen))) - np.log1p(len(_text(p.rejected))) for p in pairs]
    return Data(pairs, np.array([p.p_chosen for p in pairs]), groups, np.array(lengths))


def partition(groups: IntArray, parts: int, seed: int) -> IntArray:
    """The part of each pair, `(N,)` in 0 … parts − 1, that of its group; equally many groups in each.

    Raises:
        ValueError: fewer groups than parts.
    """
    unique, index = np.unique(groups, return_inverse=True)
    if len(unique) < parts:
        raise ValueError(f"{len(unique)} groups of pairs: {parts} parts need as many")
    part: IntArray = np.random.default_rng(seed).permutation(np.arange(len(unique)) % parts)[index]
    return part


def make_methods(data: Data, settings: Settings) -> list[Method]:
    """The baselines, and each kind of model from scratch and on the encoder; where annotators disagree, both
    with the majority's verdict as a hard label and with their share as a soft one."""
    methods = [
        Method([LENGTH], lambda known, judged: [length_rule(data, known, judged)]),
        Method([WORDS], lambda known, judged: [words(data, known, judged, settings)]),
    ]
    hard = 0.5 + 0.5 * np.sign(data.labels - 0.5)
    answers = [
        replace(pair, prompt="", chosen=chosen, rejected=rejected)
        for pair in data.pairs
        for chosen, rejected in [(_text(pair.chosen), _text(pair.rejected))]
    ]
    if settings.encoder is not None:
        folder = encoder_folder(settings.encoder)
        own, beside = (
            read_states(reader, answers, folder, settings.layers, settings.max_tokens)
            for reader in (BradleyTerryModel, PairwisePreferenceModel)
        )
        states = {title: beside if kind is PairwisePreferenceModel else own for title, kind in KINDS.items()}

    def add(name: str, learner: Learner, labels: FloatArray, ties: bool) -> None:
        methods.append(committee(name, learner, data, labels, settings, ties=ties))

    for name, labels in {"hard": hard, "soft": data.labels}.items():
        if name == "soft" and (labels == hard).all():
            continue
        labelled = [replace(pair, p_chosen=p) for pair, p in zip(answers, labels.tolist(), strict=True)]
        tokenised = [
            replace(pair, chosen=spaced(str(pair.chosen)), rejected=spaced(str(pair.rejected)))
            for pair in labelled
        ]
        for title, kind in KINDS.items():
            learner = scratch(kind, tokenised, settings.tiny, settings.scratch, settings.max_tokens)
            add(f"{title}, scratch, {name}", learner, labels=labels, ties=name == "soft")
        for title, kind in KINDS.items() if settings.encoder is not None else ():
            training = settings.general_head if kind is GeneralPreferenceModel else settings.head
            learner = frozen(kind, labelled, states[title], training)
            add(f"{title}, pretrained, {name}", learner, labels=labels, ties=name == "soft")
    return methods


def length_rule(data: Data, known: IntArray, judged: IntArray) -> FloatArray:
    """The longer answer wins as often as among known pairs: the shorter, if that is less than half."""
    longer = np.sign(data.lengths)
    verdicts = (longer * np.sign(data.labels - 0.5))[known]
    won, lost = (verdicts > 0.0).sum() + 0.5, (verdicts < 0.0).sum() + 0.5
    return np.asarray(np.log(won / lost) * longer[judged])


def words(data: Data, known: IntArray, judged: IntArray, settings: Settings) -> FloatArray:
    """Logistic regression on differences of TF-IDF vectors (words, pairs of them) and of log-lengths."""
    from scipy.sparse import csr_array, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = known[data.labels[known] != 0.5]
    sides = [[_text(p.chosen) for p in data.pairs], [_text(p.rejected) for p in data.pairs]]
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectoriser.fit([side[i] for i in known for side in sides])
    a, b = (vectoriser.transform(side) for side in sides)
    X = csr_array(hstack([a - b, csr_array(data.lengths[:, None])]))
    won = 0.5 + 0.5 * np.sign(data.labels[known] - 0.5)
    return X[judged] @ logistic(X[known], won, settings.regularisation)


def logistic(X: Any, p: FloatArray, C: float) -> FloatArray:
    """The weights w of `p = σ(X w)`; no intercept: exchanging two answers must exchange the verdict."""
    from scipy.sparse import issparse, vstack
    from sklearn.linear_model import LogisticRegression

    stack: Any = vstack if issparse(X) else np.concatenate
    targets = np.repeat([1, 0], len(p))
    fit = LogisticRegression(C=C, fit_intercept=False, max_iter=1000)
    weights: FloatArray = fit.fit(stack([X, X]), targets, sample_weight=np.concatenate([p, 1.0 - p])).coef_[0]
    return weights


def committee(
    name: str, learner: Learner, data: Data, labels: FloatArray, settings: Settings, *, ties: bool = False
) -> Method:
    """Each member learns from all but one part of the known pairs; the logits of all of them are averaged.

    On that part it is heard too: what members say of pairs that they do not know calibrates the committee's
    logit, alone (`name`) and with the length (`name + length`), by a logistic regression. Pairs without a
    winner are learnt from where `ties`.
    """

    def predict(known: IntArray, judged: IntArray) -> list[FloatArray]:
        known = known if ties else known[labels[known] != 0.5]
        part = partition(data.groups[known], settings.members, settings.seed + 1)
        heard, verdict = np.empty(len(known)), np.zeros(len(judged))
        for k in range(settings.members):
            left_out = np.flatnonzero(part == k)
            others = np.concatenate([known[left_out], judged])
            logits = learner(known[part != k], others, settings.seed + k)
            heard[left_out] = logits[: len(left_out)]
            verdict += logits[len(left_out) :] / settings.members
        alone, with_length = heard[:, None], np.stack([heard, data.lengths[known]], axis=1)
        weights = logistic(with_length, labels[known], 1.0)
        return [
            verdict * logistic(alone, labels[known], 1.0)[0],
            np.stack([verdict, data.lengths[judged]], axis=1) @ weights,
        ]

    return Method([name, f"{name} + length"], predict)


def summary(
    logits: Mapping[str, FloatArray], labels: FloatArray, groups: IntArray, settings: Settings
) -> Table:
    """One row for each method: means over pairs, with the quantiles of means over resampled groups."""
    unique, index = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(settings.seed)
    times = rng.multinomial(len(unique), np.full(len(unique), 1.0 / len(unique)), size=settings.resamples)
    weights = times[:, index].astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)

    def mean(values: FloatArray) -> list[float]:
        return [float(values.mean()), *np.percentile(weights @ values, INTERVAL).tolist()]

    right = {name: 0.5 + 0.5 * np.sign(s) * np.sign(labels - 0.5) for name, s in logits.items()}
    rows = []
    for name, s in logits.items():
        loss = np.logaddexp(0.0, s) - labels * s
        difference = right[name] - right[WORDS]
        rows.append([len(labels), *mean(right[name]), *mean(difference), *mean(loss)])
    columns = ["accuracy", "difference", "log_loss"]
    heads = ["pairs", *(f"{name}{end}" for name in columns for end in ("", "_low", "_high"))]
    return {"method": np.array(list(logits))} | {
        head: np.array(values) for head, values in zip(heads, zip(*rows, strict=True), strict=True)
    }


def encoder_folder(encoder: str) -> str:
    """A folder as it is; of a Python package that carries an encoder, the folder inside it.

    Raises:
        ValueError: neither.
    """
    if Path(encoder).is_dir():
        return encoder
    package = importlib.util.find_spec(encoder) if encoder.isidentifier() else None
    for place in (package and package.submodule_search_locations) or ():
        for weights in sorted(Path(place).rglob("model.safetensors")):
            return str(weights.parent)
    raise ValueError(f"--encoder {encoder}: neither a folder nor a package with a model.safetensors in it")


def spaced(text: str) -> str:
    """Lower-case words and marks, apart from each other."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def _text(text: Text) -> str:
    return text if isinstance(text, str) else "\n\n".join(str(message["content"]) for message in text)


def report(results: Table) -> str:
    """The accuracies as lines of text."""
    width = max(map(len, results["method"]))
    columns = (
        "method",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "difference",
        "difference_low",
        "difference_high",
        "log_loss",
    )
    return "\n".join(
        f"{m:<{width}}  {a:6.1%} [{al:.1%}, {ah:.1%}]  {d:+6.1%} [{dl:+.1%}, {dh:+.1%}]  {loss:.3f}"
        for m, a, al, ah, d, dl, dh, loss in zip(*(results[c] for c in columns), strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m nashpref.experiments.{NAME}", description=__doc__.splitlines()[0]
    )
    parser.add_argument("data", metavar="PAIRS", help="pairs that nashpref.llm.data.read understands")
    parser.add_argument(
        "--encoder", metavar="FOLDER", help="a pretrained encoder, or the Python package that carries one"
    )
    parser.add_argument("--quick", action="store_true", help="one fold of a few pairs, for a look")
    parser.add_argument("--out", default="results", help="folder for results and figures (default: results)")
    options = parser.parse_args(arguments)
    settings = Settings(options.data, options.encoder)
    if options.quick:
        settings = replace(settings, **QUICK)
    try:
        if settings.encoder is not None:
            encoder_folder(settings.encoder)
        tables = run(settings, progress=True)
    except (ValueError, OSError) as error:
        print(f"nashpref: {error}", file=sys.stderr)
        return 2
    (Path(options.out) / "figures").mkdir(parents=True, exist_ok=True)
    folder = Path(options.out) / NAME / Path(options.data).name.split(".")[0]
    save(folder, settings, tables)
    print(report(tables["results"]))
    print(f"wrote {folder}")
    for path in draw(NAME, Path(options.out)):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
