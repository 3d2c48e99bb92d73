"""The report of the benchmarks, without timing: a claim is never lost, and never held by accident."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nashpref as npf

harness = pytest.importorskip("benchmarks.harness", reason="the benchmarks are not part of the wheel")
from benchmarks import loops, markov, markov_loops, peers  # noqa: E402
from benchmarks.games import KINDS, relative_gap  # noqa: E402


def test_a_row_holds_exactly_when_its_target_is_met() -> None:
    def holds(value: float, target: str | None) -> bool | None:
        return harness.row("x", target, "×", lambda: (value, "")).holds

    assert holds(12.0, "≥ 12") is True
    assert holds(11.9, "≥ 12") is False
    assert holds(1e-12, "≤ 1e-12") is True
    assert holds(1.1e-12, "≤ 1e-12") is False
    assert holds(3.0, None) is None
    assert holds(math.nan, "≤ 1") is False
    assert holds(math.inf, "≥ 1") is False


def test_a_failure_is_a_row_that_does_not_hold_and_names_no_path() -> None:
    def measure() -> tuple[float, str]:
        with open("/a/private/place/no_such_peer", encoding="utf-8") as file:
            return float(file.read()), ""

    for target in ("≥ 1", None):
        row = harness.row("against a peer that is missing", target, "×", measure)
        assert row.holds is False
        assert row.value is None
        assert "FileNotFoundError" in row.note
        assert "private" not in row.note


def test_a_group_that_breaks_keeps_its_rows_and_says_so() -> None:
    def rows() -> Iterator[object]:
        yield harness.row("first", "≥ 1", "×", lambda: (2.0, ""))
        raise RuntimeError("out of games")

    first, rest = harness.collect("exact", rows)
    assert first.holds
    assert rest.holds is False
    assert "out of games" in rest.note
    assert "exact" in rest.name


def test_timing_takes_turns_and_keeps_the_last_results() -> None:
    calls: list[str] = []
    pairs = harness.interleave(
        lambda: calls.append("ours") or len(calls),
        lambda: calls.append("peer") or len(calls),
        3,
        warm_up=False,
        clock=itertools.count().__next__,
    )
    assert calls == ["ours", "peer"] * 3
    assert pairs.results == (5, 6)
    assert pairs.ours == pairs.peer == [1, 1, 1]


def test_ratios_are_medians_over_pairs() -> None:
    pairs = harness.Pairs([1.0, 2.0, 4.0], [3.0, 2.0, 8.0], (None, None))
    assert pairs.speedup == 2.0
    assert pairs.slowdown == 0.5
    assert pairs.each(2, 1).speedup == 4.0


def test_the_report_has_every_row_and_no_path_of_the_machine(tmp_path: Path) -> None:
    rows = [
        harness.Row("a | b", 13.25, "≥ 12", "×", True, "1 ms against 13 ms"),
        harness.Row("missing", None, "≤ 8", "n² doubles", False, "failed: ImportError"),
        harness.Row("only reported", 0.8, None, "×", None, ""),
    ]
    machine = harness.machine()
    harness.write_report({"first": rows[1:]}, machine, tmp_path)
    harness.write_report({"second": rows[:1]}, machine, tmp_path)
    harness.write_report({"first": rows}, machine, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(report) == ["first", "second"]
    assert [row["holds"] for row in report["first"]["rows"]] == [True, False, None]
    assert report["second"]["rows"][0].keys() == {"name", "value", "target", "unit", "holds", "note"}
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert r"| a \| b | 13.2 × | ≥ 12 | yes | 1 ms against 13 ms |" in table
    assert "| missing | – n² doubles | ≤ 8 | **no** |" in table
    assert str(Path.home()) not in table
    assert {"cpu", "cores", "ram_gib", "python", "numpy", "scipy", "numba", "blas"} <= machine.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_game_is_made_at_every_small_size(kind: str) -> None:
    for n in (1, 2, 3, 10):
        game = KINDS[kind](n, np.random.default_rng(n))
        assert game.n == n
        assert relative_gap(game, npf.equilibrium(game).policy) <= 1e-12


def test_hand_written_loops_have_the_gaps_of_solve() -> None:
    game = npf.zoo.random_preferences(7, np.random.default_rng(0))
    batch = npf.zoo.random_preferences(4, np.random.default_rng(1), batch=3)
    for played, rule, gaps in (
        (game, npf.OGDA(eta=0.5), loops.ogda(game.payoffs, 0.5, 100)),
        (batch, npf.OGDA(eta=0.5), loops.ogda_batch(batch.payoffs, 0.5, 100)),
        (game, npf.NashMD(beta=0.1, eta=0.5), loops.nash_md(game.payoffs, 0.1, 0.5, 100)),
        (game, npf.EGPO(beta=0.1, eta=0.5), loops.egpo(game.payoffs, 0.1, 0.5, 100)),
    ):
        loops.agreement(npf.solve(played, rule, 100, record=1, compiled=False), gaps)
    with pytest.raises(RuntimeError, match="other gaps"):
        loops.agreement(npf.solve(game, npf.OGDA(eta=0.4), 100, record=1), loops.ogda(game.payoffs, 0.5, 100))


def test_hand_written_markov_loops_have_the_policies_of_solve() -> None:
    rng = np.random.default_rng(0)
    game = npf.zoo.random_markov_game(6, 3, 4, rng)
    trace = npf.solve(game, npf.OMPO(eta=0.5), 50, record=1)
    run = markov_loops.ompo(game.payoffs, game.transitions, 0.5, 50, gaps=True)
    loops.agreement(trace, (run.gap, run.average_gap))
    markov.agreement(game, trace, run)
    with pytest.raises(RuntimeError, match="other policies"):
        markov.agreement(game, npf.solve(game, npf.OMPO(eta=0.4), 50), run)
    final = npf.zoo.random_markov_game(6, 3, 4, rng, terminal=True)
    trace = npf.solve(final, npf.MTPO(beta=0.1, eta=0.5), 50)
    markov.agreement(final, trace, markov_loops.mtpo(final.payoffs[0], final.transitions, 0.1, 0.5, 50))
    assert markov.joint_difference((6, 3, 4), rng)[0] <= 1e-15


def test_the_peers_that_need_no_extra_solve_the_game() -> None:
    game = npf.zoo.random_preferences(9, np.random.default_rng(2))
    assert relative_gap(game, peers.scipy_linprog(game.payoffs)) <= 1e-9
    log_mu = np.full(9, -np.log(9.0))
    policy, _ = peers.mirror_prox(game.payoffs, 0.1, log_mu, 1e-12)
    assert npf.duality_gap(game, policy, beta=0.1) <= 1.1e-12
    cone, share = peers.clarabel(game.payoffs, 0.1, log_mu)
    assert npf.duality_gap(game, cone, beta=0.1) <= 1e-6
    assert 0.0 < share <= 1.0
