"""Every named rule passes the conformance suite; rules with a slip, and a broken core, do not."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import MirrorStep, testing
from nashpref.interpreter import Iterate, NamedPolicies
from nashpref.matrix_interpreter import MatrixInterpreter
from nashpref.mirror import toward_reference
from nashpref.policies import normalise
from nashpref.testing import checks, conformance

# --- the rules of the library: a row each ---

RULES: dict[str, npf.UpdateRule] = {
    "MWU": npf.MWU(eta=0.5),
    "MWU, decreasing": npf.MWU(eta=lambda t: 1.0 / (t + 1) ** 0.5),
    "GDA": npf.GDA(beta=0.1, eta=0.5),
    "GDA, theorem": npf.GDA(beta=0.1),
    "GDA, unregularised": npf.GDA(eta=0.5),
    "Nash-EMA": npf.NashEMA(beta=0.1, eta=0.5),
    "OGDA": npf.OGDA(),
    "OMPO": npf.OMPO(),
    "MTPO": npf.MTPO(beta=0.1, eta=0.5),
    "MPO": npf.MPO(eta=0.5),
    "OGDA, regularised": npf.OGDA(beta=0.1, eta=0.4),
    "ONPO": npf.ONPO(),
    "EGPO": npf.EGPO(beta=0.1),
    "EGPO, unregularised": npf.EGPO(eta=0.5),
    "MMD": npf.MMD(beta=0.1),
    "MMD, long steps": npf.MMD(beta=0.5, eta=3.0),
    "Nash-MP": npf.NashMP(beta=0.1),
    "MNPO": npf.MNPO(beta=0.1, eta=0.3),
    "MNPO, three back": npf.MNPO(eta=0.3, weights=(0.2, 0.3, 0.5)),
    "COMAL": npf.COMAL(beta=0.1, every=3),
    "best response": npf.BestResponse(beta=0.5, opponent="current"),
    "best response to ν": npf.BestResponse(beta=0.5, opponent="nu"),
}
SCHEDULED: dict[str, npf.UpdateRule] = {
    "MTPO-τ": npf.MTPOTau(beta=0.1),
    "Nash-MD": npf.NashMD(beta=0.1),
    "Nash-MD, β = 1": npf.NashMD(beta=1.0),
}

SUITES = {name: checks(rule) for name, rule in RULES.items()} | {
    name: checks(rule, exact_fixed_point=False) for name, rule in SCHEDULED.items()
}


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, suite in SUITES.items() for name in suite])
def test_named_rules(rule: str, name: str) -> None:
    SUITES[rule][name]()


def test_the_table_has_every_rule_of_the_library() -> None:
    tested = {type(rule).__name__ for rule in (*RULES.values(), *SCHEDULED.values())}
    public = {name for name in npf.__all__ if hasattr(getattr(npf, name), "steps")} - {"UpdateRule", "Trace"}
    assert tested == public


# --- the two lines of a user ---


@dataclass(frozen=True)
class Halfway:
    """A rule that is nobody's: GDA whose opponent is halfway back to the previous policy. No base class."""

    beta: float
    eta: float

    def steps(self, t: int) -> Sequence[MirrorStep]:
        return (
            MirrorStep("opponent", {"current": 0.5, "previous": 0.5}),
            MirrorStep("previous", {"current": 1.0}),
            MirrorStep("current", toward_reference("current", self.eta * self.beta), {"opponent": self.eta}),
        )


test_halfway = conformance(Halfway(beta=0.1, eta=0.2))


def test_a_suite_is_one_pytest_item_for_each_property() -> None:
    marks = {mark.name: mark.args for mark in test_halfway.pytestmark}  # type: ignore[attr-defined]
    names = list(marks["parametrize"][1])
    assert {"sign", "fixed_point", "small_steps", "two_players", "clones", "compiled_equals_numpy"} <= set(
        names
    )
    assert len(names) == 13


def test_without_a_step_size_the_limit_is_left_out() -> None:
    assert "small_steps" not in checks(npf.BestResponse(beta=0.5))


# --- the slips ---


@dataclass(frozen=True)
class Wrong:
    """A program that is wrong in one place."""

    program: Callable[[float, float], Sequence[MirrorStep]]
    beta: float = 0.2
    eta: float = 0.3

    def steps(self, t: int) -> Sequence[MirrorStep]:
        return self.program(self.beta, self.eta)


def current(anchors: dict[str, float], payoffs: dict[str, float]) -> MirrorStep:
    return MirrorStep("current", anchors, payoffs)


def pull(beta: float, eta: float) -> dict[str, float]:
    return {"current": 1.0 - eta * beta, "reference": eta * beta}


WRONG: dict[str, tuple[Callable[[float, float], Sequence[MirrorStep]], tuple[str, ...]]] = {
    "descent": (lambda b, e: [current(pull(b, e), {"current": -e})], ("sign", "fixed_point", "small_steps")),
    "anchors swapped": (
        lambda b, e: [current({"current": e * b, "reference": 1.0 - e * b}, {"current": e})],
        ("fixed_point", "small_steps"),
    ),
    "no pull towards the reference": (
        lambda b, e: [current({"current": 1.0}, {"current": e})],
        ("fixed_point", "small_steps"),
    ),
    "pull of η instead of ηβ": (
        lambda b, e: [current(pull(1.0, e), {"current": e})],
        ("fixed_point", "small_steps"),
    ),
    "previous with the wrong sign": (
        lambda b, e: [
            MirrorStep("next", pull(b, e), {"current": 2.0 * e, "previous": e}),
            MirrorStep("previous", {"current": 1.0}),
            current({"next": 1.0}, {}),
        ],
        ("fixed_point", "small_steps"),
    ),
    "pulled twice: Nash-MD from the mixture, and again": (
        lambda b, e: [
            MirrorStep("mixture", pull(b, e)),
            current({"mixture": 0.9, "reference": 0.1}, {"mixture": e}),
        ],
        ("fixed_point", "small_steps"),
    ),
    "extragradient that starts from the half step": (
        lambda b, e: [
            MirrorStep("half", pull(b, e), {"current": e}),
            current({"half": 1.0 - e * b, "reference": e * b}, {"half": e}),
        ],
        ("small_steps",),
    ),
    "anchors that miss one by a rounding of their own": (
        lambda b, e: [current({"current": 1.0 - e * b, "reference": e * b + 5e-10}, {"current": e})],
        ("anchors_sum_to_one",),
    ),
    "the reference as opponent": (
        lambda b, e: [current(pull(b, e), {"reference": e})],
        ("fixed_point", "small_steps"),
    ),
    "writes another name": (
        lambda b, e: [MirrorStep("policy", pull(b, e), {"current": e})],
        ("schedule", "sign", "small_steps"),
    ),
}


def fails(suite: dict[str, Callable[[], None]], *names: str) -> str:
    """The last message of the properties `names`, all of which fail, and say so."""
    message = ""
    for name in names:
        with pytest.raises(AssertionError, match=f"^{name}: ") as failure:
            suite[name]()
        message = str(failure.value)
    return message


@pytest.mark.parametrize("slip", WRONG)
def test_a_slip_is_caught(slip: str) -> None:
    program, expected = WRONG[slip]
    message = fails(checks(Wrong(program)), *expected)
    assert "rule: Wrong(" in message
    if not {"schedule", "anchors_sum_to_one"} & set(expected):
        assert re.search(r"game: n = \d, P =\n\[\[0\.5", message)


def test_nash_md_against_the_current_policy_is_caught() -> None:
    """TRL's slip makes it GDA: every other property holds, and the fixed point turns exact."""

    @dataclass(frozen=True)
    class AgainstCurrent(npf.NashMD):
        def program(self, eta: Any) -> tuple[MirrorStep, ...]:
            mixture, step = super().program(eta)
            return (mixture, MirrorStep("current", step.anchors, {"current": eta}))

    suite = checks(AgainstCurrent(beta=0.1), exact_fixed_point=False)
    assert "the opponent is not the one intended" in fails(suite, "vanishing_steps")
    for name in suite.keys() - {"vanishing_steps"}:
        suite[name]()


def test_nash_md_with_a_constant_step_has_no_exact_fixed_point_and_no_limit() -> None:
    rule = npf.NashMD(beta=0.1, eta=0.5)
    fails(checks(rule), "fixed_point")
    assert "does not vanish" in fails(checks(rule, exact_fixed_point=False), "vanishing_steps")


def test_a_rule_with_a_hidden_counter_is_caught() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def steps(self, t: int) -> Sequence[MirrorStep]:
            self.calls += 1
            return [current({"current": 1.0}, {"current": 1.0 / self.calls})]

    assert "the calls before it" in fails(checks(Counting()), "determinism")


def test_a_schedule_that_disagrees_with_itself_is_caught() -> None:
    @dataclass(frozen=True)
    class OffByOne(npf.GDA):
        def step_sizes(self, start: int, stop: int) -> Any:
            return super().step_sizes(start + 1, stop + 1)

    fails(checks(OffByOne(beta=0.1)), "schedule", "compiled_equals_numpy")


def test_an_overflowing_weight_is_caught() -> None:
    class Huge:
        def steps(self, t: int) -> Sequence[MirrorStep]:
            return [current({"current": 1.0}, {"current": 1e308})]

    assert "leaves the finite numbers" in fails(checks(Huge()), "simplex", "shift_invariance")


# --- a broken core: one property each ---


def perturbed(
    change: Callable[[Any, MirrorStep, NamedPolicies, npf.MatrixGame], Any],
) -> Callable[..., Iterate]:
    """The numpy evaluation of a step whose logits a slip changes."""
    evaluate = MatrixInterpreter.evaluate

    def broken(self: MatrixInterpreter, step: MirrorStep, policies: NamedPolicies) -> Iterate:
        logits = change(evaluate(self, step, policies).log_policy, step, policies, self.game)
        return self.iterate(*normalise(logits))

    return broken


BROKEN: dict[str, Callable[..., Any]] = {
    "permutation_equivariance": lambda log, *_: log + 1e-6 * np.arange(log.shape[-1]),
    "shift_invariance": lambda log, step, policies, game: (
        log * (1.0 + game.payoff(policies["current"].policy).mean())
    ),
    "clones": lambda log, *_: log + 1e-3 * log.shape[-1] * log,
    "sign": lambda log, *_: -log,
    "two_players": lambda log, *_: np.round(log, 9),
    "batch_equals_loop": lambda log, *_: log * (1.0 + 1e-3 * (log.ndim - 1)),
    "compiled_equals_numpy": lambda log, *_: log * (1.0 + 1e-6),
    "simplex": lambda log, *_: np.where(log < -25.0, -np.inf, log),
    "fixed_point": lambda log, step, *_: log * (1.0 - 1e-6),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_interpreter_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MatrixInterpreter, "evaluate", perturbed(BROKEN[name]))
    with pytest.raises(AssertionError, match=name):
        checks(npf.GDA(beta=0.1, eta=0.3))[name]()


# --- the strategies keep their word ---


@pytest.mark.parametrize("kind", testing.KINDS)
def test_every_kind_is_drawn_and_shrinks_to_its_smallest_size(kind: str) -> None:
    from hypothesis import find

    smallest = {"clones": 2, "dominated": 2, "blockwise": 2}.get(kind, 1)
    assert find(testing.preference_games(kinds=[kind]), lambda game: True).n == smallest


@settings(max_examples=60)
@given(data=st.data(), game=st.one_of(testing.preference_games(), testing.preference_batches()))
def test_policies_are_policies(data: st.DataObject, game: npf.MatrixGame) -> None:
    shape = game.policy_shape
    positive = data.draw(st.one_of(testing.policies(shape), testing.references(shape)))
    with_zeros = data.draw(testing.policies(shape, zeros=True))
    assert positive.min() > 0.0
    assert with_zeros.min() >= 0.0
    for policy in (positive, with_zeros):
        assert policy.shape == shape
        np.testing.assert_allclose(policy.sum(axis=-1), 1.0, atol=1e-12)


def test_policies_reach_the_boundary() -> None:
    from hypothesis import find

    assert find(testing.policies(3), lambda policy: policy.min() < 1e-290).max() > 0.3
    assert find(testing.policies(3, zeros=True), lambda policy: (policy == 0.0).sum() == 2).max() == 1.0


@settings(max_examples=40)
@given(drawn=testing.interior_equilibria())
def test_interior_equilibria_are_equilibria(drawn: tuple[npf.MatrixGame, Any]) -> None:
    game, policy = drawn
    assert policy.min() > 0.0
    assert npf.duality_gap(game, policy) <= 1e-13
