"""Every theorem holds where it should, refuses what it does not cover, and can fail."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import theory
from nashpref.theory import Case, Verdict

NOTES = Path(theory.__file__).parent / "notes"
MATRIX_THEOREMS = [theorem for theorem in theory.THEOREMS if npf.MatrixGame in theorem.games]


@pytest.fixture(scope="module")
def rows():
    return theory.check_all()


def softmax(rng, n, scale=1.0):
    logits = scale * rng.standard_normal(n)
    return np.exp(logits) / np.exp(logits).sum()


def test_every_theorem_has_its_expected_verdict(rows):
    for summary in theory.summarise(rows):
        assert summary.as_expected, (summary.theorem.name, summary.worst)
        assert summary.games >= (1 if summary.theorem is theory.RLHF else 6)
        if summary.verdict is Verdict.HOLDS:
            assert 0.0 < summary.worst.check.ratio <= 1.0 + 1e-9
    assert all(row.as_expected for row in rows)
    assert [s.theorem for s in theory.summarise(rows)] == list(theory.THEOREMS)


def test_rows_cover_every_game_beta_and_reference(rows):
    covered = {(row.game, row.reference, row.beta) for row in rows if row.theorem is theory.NASH_MD}
    matrix = itertools.product(theory.named_games(), ("uniform", "random"), (1.0, 0.1, 0.01))
    markov = itertools.product(theory.named_markov_games(), ("uniform", "random"), (1.0, 0.1))
    assert covered == {*matrix, *markov}
    # What is skipped is skipped for the reasons there are: at rest, or an assumption about the game.
    expected = (
        *("the run starts at the equilibrium", "max|Aπ*| = ", "L = ", "the preference is off a difference"),
        "the preference is not of final states",
    )
    reasons = {reason for row in rows for reason in row.check.unmet}
    assert all(reason.startswith(expected) for reason in reasons), reasons


def test_onpo_printed_bound_fails(rows):
    printed = next(s for s in theory.summarise(rows) if s.theorem is theory.ONPO_PRINTED)
    assert printed.verdict is Verdict.FAILS
    assert printed.failed >= 10
    assert printed.worst.check.ratio > 2.0
    corrected = next(s for s in theory.summarise(rows) if s.theorem is theory.ONPO_AVERAGE)
    assert corrected.failed == 0


def test_table_and_csv_say_the_same(rows, tmp_path):
    text = theory.table(rows)
    for summary in theory.summarise(rows):
        assert summary.theorem.statement in text
        line = next(line for line in text.splitlines() if line.startswith(summary.theorem.name + "  "))
        assert f"  {summary.verdict}  " in line
        assert format(summary.worst.check.ratio, "#.4g") in line
    theory.write_csv(rows, tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    for line, row in zip(written, rows, strict=True):
        assert line["theorem"] == row.theorem.name
        assert line["verdict"] == row.check.verdict
        np.testing.assert_equal(float(line["ratio"]), row.check.ratio)


def test_an_unexpected_verdict_is_marked():
    shrunk = replace(theory.NASH_MD, bound=lambda case, t: 1e-6 * theory.NASH_MD.bound(case, t))
    rows = theory.check_all({"COMAL": npf.zoo.comal()}, betas=(0.1,), theorems=[shrunk])
    assert not any(summary.as_expected for summary in theory.summarise(rows))
    assert not all(row.as_expected for row in rows)
    assert "fails (expected: holds)" in theory.table(rows)


@pytest.mark.parametrize("theorem", MATRIX_THEOREMS, ids=lambda theorem: theorem.name)
@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-4])
def test_a_broken_constant_is_caught(theorem, scale):
    """A bound of the wrong sign, zero or far too small fails: no check passes vacuously."""
    broken = replace(
        theorem, bound=lambda case, t: scale * theorem.bound(case, t), steps=min(theorem.steps, 30)
    )
    game, mu = npf.zoo.comal(), np.array([0.7, 0.2, 0.1])
    case = Case(game, theorem.rule(game, mu, 0.1 if theorem.regularised else 0.0), mu, broken.steps)
    assert broken.check(case).verdict is Verdict.FAILS


def test_a_bound_that_is_not_a_number_fails():
    broken = replace(theory.NASH_MD, bound=lambda case, t: np.full_like(t, np.nan))
    assert broken.check(Case(npf.zoo.comal(), npf.NashMD(beta=0.1))).verdict is Verdict.FAILS


@pytest.mark.parametrize(
    ("theorem", "rule", "reason"),
    [
        (theory.MWU_AVERAGE, npf.OGDA(), "the rule is OGDA, not MWU or GDA"),
        (theory.MWU_AVERAGE, npf.GDA(beta=0.1), "β = 0.1: the theorem is about β = 0"),
        (
            theory.MWU_AVERAGE,
            npf.MWU(eta=lambda t: 1 / (t + 1)),
            "η runs from 1 to 0.01: it must be constant",
        ),
        (theory.NASH_MD, npf.NashMD(beta=0.1, eta=0.5), "η_0 = 0.5, not 2/(β(t+2)) = 10"),
        (theory.GDA_LINEAR, npf.GDA(eta=0.1), "β = 0: the theorem is about β > 0"),
        (theory.GDA_LINEAR, npf.GDA(beta=0.1, eta=0.7), "η = 0.7 > β/(β²+L²) = 0.588235"),
        (theory.MMD_LINEAR, npf.MMD(beta=0.1, eta=0.7), "η = 0.7 > β/L² = 0.625"),
        (theory.EGPO_LINEAR, npf.EGPO(beta=0.1, eta=2.5), "η = 2.5 > 1/(β+L) = 2"),
        (theory.NASH_MP_LINEAR, npf.NashMP(beta=0.1, eta=2.6), "η = 2.6 > 1/L = 2.5"),
        (theory.OGDA_AVERAGE, npf.OGDA(eta=1.1), "η = 1.1 > (√2−1)/L = 1.03553"),
        (theory.ONPO_PRINTED, npf.ONPO(eta=0.4), "η = 0.4, not min(1/2, √D) = 0.5"),
    ],
)
def test_unmet_assumptions_are_named_with_their_numbers(theorem, rule, reason):
    check = theorem.check(Case(npf.zoo.comal(), rule, steps=100))
    assert check.verdict is Verdict.NOT_APPLICABLE
    assert check.unmet == (reason,)
    assert np.isnan(check.ratio)


def test_the_start_at_equilibrium_proves_nothing():
    case = Case(npf.zoo.rock_paper_scissors(), npf.GDA(beta=0.1, eta=0.1))
    assert theory.GDA_LINEAR.check(case).unmet == ("the run starts at the equilibrium",)


def test_a_case_refuses_what_it_cannot_run():
    with pytest.raises(ValueError, match="batch of 3"):
        Case(npf.zoo.annotator_rankings(), npf.MWU(eta=0.1))
    with pytest.raises(ValueError, match=r"reference\[2\] = 0.0 is zero"):
        Case(npf.zoo.comal(), npf.MWU(eta=0.1), np.array([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("eta", [0.01, 0.1, 1.0, 3.0])
def test_mwu_average_holds_for_any_constant_step(eta):
    for game in (npf.zoo.comal(), npf.zoo.random_preferences(6, np.random.default_rng(0))):
        mu = softmax(np.random.default_rng(1), game.n)
        for rule in (npf.MWU(eta=eta), npf.GDA(eta=eta)):
            assert theory.MWU_AVERAGE.check(Case(game, rule, mu)).verdict is Verdict.HOLDS


def test_mwu_last_iterate_strictly_moves_away_on_a_cycle():
    kl = Case(npf.zoo.rock_paper_scissors(), npf.MWU(eta=1.0), np.array([0.4, 0.3, 0.3]), 300).trace.kl
    assert (np.diff(kl) > 0.0).all()
    assert kl[-1] > 100 * kl[0]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(2, 7), beta=st.floats(0.01, 2.0), share=st.floats(0.01, 1.0)
)
def test_one_step_of_nash_md_from_anywhere(seed, n, beta, share):
    rng = np.random.default_rng(seed)
    game, mu, start = npf.zoo.random_preferences(n, rng), softmax(rng, n), softmax(rng, n, 3.0)
    star, eta = npf.equilibrium(game, beta, mu).policy, share / beta
    trace = npf.solve(game, npf.NashMD(beta=beta, eta=eta), 1, reference=mu, start=start, equilibrium=star)
    assert trace.kl[1] <= (1.0 - eta * beta) * trace.kl[0] + eta**2 / 8.0 + 1e-12


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(2, 7), beta=st.floats(0.01, 2.0), share=st.floats(0.01, 1.0)
)
def test_largest_steps_still_contract(seed, n, beta, share):
    """One step from anywhere, up to the largest η: GDA β/(β²+L²), MMD β/L², EGPO 1/(β+L), Nash-MP 1/L."""
    rng = np.random.default_rng(seed)
    game, mu, start = npf.zoo.random_preferences(n, rng), softmax(rng, n), softmax(rng, n, 3.0)
    star, L = npf.equilibrium(game, beta, mu).policy, np.abs(game.payoffs).max()
    for rule, eta, factor in (
        (npf.GDA, share * beta / (beta**2 + L**2), lambda b: 1.0 - b),
        (npf.MMD, share * beta / L**2, lambda b: 1.0 / (1.0 + b)),
        (npf.EGPO, share / (beta + L), lambda b: 1.0 - b),
        (npf.NashMP, share / L, lambda b: 1.0 / (1.0 + b)),
    ):
        trace = npf.solve(
            game, rule(beta=beta, eta=eta), 1, reference=mu, start=start, equilibrium=star, compiled=False
        )
        assert trace.kl[1] <= factor(eta * beta) * trace.kl[0] * (1.0 + 1e-9) + 1e-14, (rule, eta)


def test_comal_with_inexact_inner_solutions_tracks_the_exact_ones():
    """`Case.proximal_points` is what the rule COMAL does when it is given inner steps enough."""
    case = Case(npf.zoo.comal(), npf.COMAL(beta=1.0, every=60), np.array([0.6, 0.3, 0.1]), 10)
    run = npf.solve(
        case.game, case.rule, 600, reference=case.mu, equilibrium=case.equilibrium.policy, record=60
    )
    exact, gaps = case.proximal_points
    np.testing.assert_allclose(run.kl, exact, rtol=1e-6)
    assert gaps.max() < 1e-20


def test_sources_name_notes_that_exist():
    for theorem in theory.THEOREMS:
        for word in theorem.source.replace(";", " ").split():
            if word.startswith("notes/"):
                assert (NOTES.parent / word.rstrip(",")).is_file(), theorem.source
