"""Every theorem on every game: the rows and the table of `nashpref theorems`."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from nashpref.games import zoo
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.policies import FloatArray, normalise, uniform
from nashpref.progress import progress_bar
from nashpref.theory.bounds import MATRIX_THEOREMS
from nashpref.theory.markov_bounds import MARKOV_THEOREMS, STEPS
from nashpref.theory.theorems import Case, Check, Theorem, Verdict
from nashpref.theory.trajectories import Game

THEOREMS: tuple[Theorem, ...] = MATRIX_THEOREMS + MARKOV_THEOREMS
BETAS, MARKOV_BETAS = (1.0, 0.1, 0.01), (1.0, 0.1)
COLUMNS = (
    *("theorem", "game", "reference", "beta", "verdict", "expected", "ratio", "t", "unmet"),
    *("statement", "source"),
)


@dataclass(frozen=True)
class Row:
    """One theorem on one game: `reference` names μ, which is also the start; β = 0 where there is none."""

    theorem: Theorem
    game: str
    reference: str
    beta: float
    check: Check

    @property
    def as_expected(self) -> bool:
        """Whether nothing failed that should hold. (A false claim may hold on some games: see `Summary`.)"""
        return self.check.verdict is not Verdict.FAILS or self.theorem.expected is Verdict.FAILS


@dataclass(frozen=True)
class Summary:
    """One theorem over all its rows.

    Attributes:
        theorem: the theorem.
        verdict: fails if it fails once, holds if it holds wherever it applies, not applicable without any.
        worst: the row with the largest ratio; None if no row applies.
        applied: how many rows it applies to. skipped: to how many it does not. failed: on how many it fails.
        games: how many games it applies to.
    """

    theorem: Theorem
    verdict: Verdict
    worst: Row | None
    applied: int
    skipped: int
    failed: int
    games: int

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one that the theorem is listed with."""
        return self.verdict is self.theorem.expected


def named_games() -> dict[str, MatrixGame]:
    """Matrix games of the table: cycles, transitive, random, tied, dominated; n = 3 … 50; fixed seeds."""

    def rng(seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    return {
        "rock-paper-scissors": zoo.rock_paper_scissors(),
        "7-cycle": zoo.rock_paper_scissors(7, 0.9),
        "annotators": zoo.annotators(),
        "COMAL's cycle": zoo.comal(),
        "with a clone": zoo.with_clones(zoo.comal(), 0),
        "with a dominated response": zoo.with_dominated(zoo.comal(), 0, rng(0)),
        "cycle above cycle": zoo.blockwise([zoo.annotators(), zoo.rock_paper_scissors()], 0.8),
        "Bradley–Terry 5": zoo.bradley_terry(rng(1).standard_normal(5)),
        "GPM rank 2": zoo.low_rank_skew(8, 2, rng(2)),
        "tournament 9": zoo.random_tournament(9, rng(3)),
        "votes of 5": zoo.random_quantised(6, rng(4), 5),
        "random 10 a": zoo.random_preferences(10, rng(5)),
        "random 10 b": zoo.random_preferences(10, rng(6)),
        "logistic 20": zoo.random_logistic(20, rng(7), scale=2.0),
        "random 50": zoo.random_preferences(50, rng(8)),
    }


def named_markov_games() -> dict[str, MarkovGame]:
    """Markov games of the table: trees, merging paths, chance, one start and several; fixed seeds."""

    def rng(seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def turns(left: int) -> dict[str, object]:
        return {reply: turns(left - 1) if left > 1 else None for reply in ("ask", "answer", "decline")}

    leaves = zoo.random_preferences(27, rng(1)).preferences
    rock_paper_scissors = zoo.rock_paper_scissors().preferences
    return {
        "one turn": MarkovGame.from_matrix(zoo.comal()),
        "dialogue": MarkovGame.from_tree(turns(3), leaves),
        "best of three": MarkovGame(np.ones((1, 3, 1)), rock_paper_scissors[None, :, None], 0, horizon=3),
        "twelve rounds": MarkovGame(
            np.ones((1, 2, 1)), np.array([[0.5, 1.0], [0.0, 0.5]])[None, :, None], 0, horizon=12
        ),
        "grid": zoo.gridworld(9, 4, 4, rng(3), slip=0.0),
        "slippery grid": zoo.gridworld(9, 5, 4, rng(4), slip=0.2, features=4, terminal=True),
        "final states": zoo.random_markov_game(5, 3, 3, rng(5), terminal=True),
        "every step": zoo.random_markov_game(4, 3, 5, rng(6)),
        "three starts": zoo.random_markov_game(6, 2, 5, rng(7), terminal=True, branching=2, starts=3),
        "rewards": MarkovGame.from_rewards(
            rng(8).dirichlet(np.ones(4), (4, 3)), rng(9).random(4), 0, scale=0.5, horizon=3
        ),
    }


def references(game: Game) -> dict[str, FloatArray]:
    """The uniform policy, and one with logits N(0, 1)."""
    shape = game.policy_shape
    logits = np.random.default_rng(int(np.prod(shape))).standard_normal(shape)
    return {"uniform": uniform(shape), "random": normalise(logits)[1]}


def check_all(
    games: Mapping[str, Game] | None = None,
    *,
    betas: Sequence[float] | None = None,
    theorems: Sequence[Theorem] = THEOREMS,
    progress: bool = False,
) -> list[Row]:
    """Check every theorem on every game that it is about, with both `references` and every β it concerns.

    Theorems about the same rule share its run. Deterministic.

    Args:
        games: by name; `named_games()` and `named_markov_games()` when None.
        betas: the β > 0 of the theorems about regularised games; 1, 0.1 and, in matrix games, 0.01 when None.
        theorems: which.
        progress: show a bar, on a terminal, once two seconds have passed.
    """
    compiled = find_spec("numba") is not None  # one process makes many short runs: loading it pays
    if games is None:
        games = {**named_games(), **named_markov_games()}
    rows: list[Row] = []
    with progress_bar(progress, len(games), "game") as bar:
        for done, (game_name, game) in enumerate(games.items(), start=1):
            chosen = betas or (BETAS if isinstance(game, MatrixGame) else MARKOV_BETAS)
            for reference_name, mu in references(game).items():
                cases: dict[object, Case] = {}
                for theorem in theorems:
                    if not isinstance(game, theorem.games):
                        continue
                    for beta in chosen if theorem.regularised else (0.0,):
                        case = _case(theorem, game, mu, beta, compiled)
                        case = cases.setdefault((case.rule, case.steps, case.geometry), case)
                        rows.append(Row(theorem, game_name, reference_name, beta, theorem.check(case)))
            bar(done)
    return rows


def _case(theorem: Theorem, game: Game, mu: FloatArray, beta: float, compiled: bool) -> Case:
    rule = theorem.rule(game, mu, beta)
    if isinstance(game, MatrixGame):
        return Case(game, rule, mu, theorem.steps, compiled or None)
    return Case(game, rule, mu, min(theorem.steps, STEPS), geometry=theorem.geometry)


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One summary per theorem, in the order of the rows."""
    summaries = []
    for theorem in dict.fromkeys(row.theorem for row in rows):
        own = [row for row in rows if row.theorem is theorem]
        applied = [row for row in own if row.check.verdict is not Verdict.NOT_APPLICABLE]
        failed = sum(row.check.verdict is Verdict.FAILS for row in applied)
        worst = max(applied, key=lambda row: row.check.ratio, default=None)
        verdict = Verdict.FAILS if failed else Verdict.HOLDS if applied else Verdict.NOT_APPLICABLE
        games = len({row.game for row in applied})
        skipped = len(own) - len(applied)
        summaries.append(Summary(theorem, verdict, worst, len(applied), skipped, failed, games))
    return summaries


def table(rows: Sequence[Row]) -> str:
    """The verdict table: each theorem with its largest measured/bound, where that is, claim and source."""
    lines = [("theorem", "verdict", "measured/bound ≤", "runs", "at")]
    claims = []
    for s in summarise(rows):
        verdict = s.verdict.value + ("" if s.as_expected else f" (expected: {s.theorem.expected})")
        worst = (format(s.worst.check.ratio, "#.4g"), _place(s.worst)) if s.worst else ("—", "")
        runs = f"{s.applied} on {s.games} games" + (f", {s.failed} fail" if s.failed else "")
        lines.append((s.theorem.name, verdict, worst[0], runs, worst[1]))
        claims.append(f"    {s.theorem.statement}   [{s.theorem.source}]")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(
        [head, "─" * max(map(len, body)), *(x for pair in zip(body, claims, strict=True) for x in pair)]
    )


def _place(row: Row) -> str:
    beta = f", β = {row.beta:g}" if row.theorem.regularised else ""
    return f"{row.game}, {row.reference} μ{beta}" + (f", t = {row.check.t}" if row.check.t else "")


def write_csv(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write the rows, ratios in full precision; `unmet` says why a theorem is not applicable."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            theorem, check = row.theorem, row.check
            where = (theorem.name, row.game, row.reference, row.beta)
            found = (check.verdict, theorem.expected, check.ratio, check.t, "; ".join(check.unmet))
            writer.writerow((*where, *found, theorem.statement, theorem.source))
