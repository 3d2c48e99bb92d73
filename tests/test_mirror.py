"""The language: what a program may say, and what it is refused."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import MirrorStep
from nashpref.mirror import (
    ScheduledRule,
    check_rule_beta,
    decreasing,
    horizon,
    target_beta,
    toward_reference,
)


@pytest.mark.parametrize(
    "anchors", [{}, {"current": 0.9}, {"current": 1.0, "reference": 1e-8}, {"current": np.nan}]
)
def test_anchors_must_sum_to_one(anchors: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="anchors of 'current' must sum to one"):
        MirrorStep("current", anchors, {"current": 0.1})


def test_one_bad_iteration_of_an_array_of_anchors_is_refused() -> None:
    weight = np.array([0.1, 0.2, 0.3])
    MirrorStep("current", {"current": 1.0 - weight, "reference": weight})
    with pytest.raises(ValueError, match="must sum to one"):
        MirrorStep("current", {"current": np.array([0.9, 0.8, 0.5]), "reference": weight})


def test_anchors_may_extrapolate() -> None:
    assert MirrorStep("next", {"current": 2.0, "previous": -1.0}).copied is None


def test_a_copy_is_recognised() -> None:
    assert MirrorStep("previous", {"current": 1.0}).copied == "current"
    assert MirrorStep("current", {"current": 1.0}, {"current": 0.1}).copied is None
    assert MirrorStep("mixture", {"current": 0.5, "reference": 0.5}).copied is None


@settings(max_examples=50)
@given(weight=st.floats(0.0, 1.0))
def test_toward_reference_sums_to_one(weight: float) -> None:
    anchors = toward_reference("current", weight)
    assert math.fsum(anchors.values()) == pytest.approx(1.0, abs=1e-15)  # type: ignore[arg-type]
    assert anchors.get("reference", 0.0) == weight
    assert ("reference" in anchors) == (weight > 0.0)


def test_toward_reference_refuses_more_than_all() -> None:
    with pytest.raises(ValueError, match=r"eta \* beta = 1.2 > 1: choose eta ≤ 1/beta, or an implicit rule"):
        toward_reference("current", 1.2)
    with pytest.raises(ValueError, match=r"eta \* beta = 1.5 > 1"):
        toward_reference("current", np.array([0.1, 1.5]))


def test_decreasing_schedule() -> None:
    schedule = decreasing(0.5)
    assert [schedule(t) for t in range(3)] == [2.0, 4.0 / 3.0, 1.0]
    with pytest.raises(ValueError, match="needs beta > 0: pass eta"):
        decreasing(0.0)


def test_horizon_minimises_the_bound_of_the_average() -> None:
    n, steps = 5, 200
    D, eta = math.log(n), horizon(n, steps)

    def bound(eta: float) -> float:
        return 2.0 * (D / (eta * steps) + eta / 8.0)

    assert bound(eta) == pytest.approx(math.sqrt(2.0 * D / steps), rel=1e-14)
    assert bound(eta) < min(bound(0.9 * eta), bound(1.1 * eta))


def test_target_beta() -> None:
    class Bare:
        def steps(self, t: int) -> Sequence[MirrorStep]:
            return ()

    assert target_beta(npf.GDA(beta=0.3)) == 0.3
    assert target_beta(npf.COMAL(beta=0.3)) == 0.0
    assert target_beta(npf.MWU(eta=0.1)) == 0.0
    assert target_beta(Bare()) == 0.0


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_a_rule_with_a_bad_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta = {beta}: the weight of the KL must be finite and ≥ 0"):
        npf.GDA(beta=beta, eta=0.1)
    check_rule_beta(object())  # no beta: nothing to check


@pytest.mark.parametrize("eta", [0.0, -0.1, math.nan, math.inf])
def test_a_bad_step_size_is_refused_at_once(eta: float) -> None:
    message = f"eta = {eta} at t = 0: a step size must be finite and positive"
    with pytest.raises(ValueError, match=message):
        npf.GDA(eta=eta)
    with pytest.raises(ValueError, match=message):
        npf.GDA(eta=lambda t: eta)


def test_a_schedule_that_turns_bad_is_refused_when_it_does() -> None:
    rule = npf.GDA(eta=lambda t: 0.55 - 0.1 * t)
    assert rule.step_size(5) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="at t = 6"):
        rule.steps(6)
    with pytest.raises(ValueError, match="at t = 6"):
        rule.step_sizes(0, 10)
    with pytest.raises(ValueError, match=r"eta \* beta = 1.2 > 1"):
        npf.GDA(beta=0.4, eta=lambda t: float(t + 1)).steps(2)


def test_a_schedule_in_a_list() -> None:
    listed = npf.NashMD(beta=0.5, eta=[2.0, 1.0, 0.5])
    assert listed == npf.NashMD(beta=0.5, eta=(2.0, 1.0, 0.5))
    assert hash(listed) == hash(npf.NashMD(beta=0.5, eta=(2.0, 1.0, 0.5)))
    np.testing.assert_array_equal(listed.step_sizes(0, 5), [2.0, 1.0, 0.5, 0.5, 0.5])
    other = npf.NashMD(beta=0.5, eta=lambda t: [2.0, 1.0, 0.5][min(t, 2)])
    game = npf.zoo.comal()
    np.testing.assert_array_equal(npf.solve(game, listed, 9).policy, npf.solve(game, other, 9).policy)
    inner = npf.COMAL(beta=0.5, eta=[0.5, 0.25], every=3)
    assert [float(inner.steps(t)[0].payoffs["current"]) for t in range(6)] == [0.5, 0.25, 0.25] * 2


def test_a_list_that_is_no_schedule_is_refused_at_once() -> None:
    for eta in ([], "fast", [0.5, "x"], [[0.5]]):
        with pytest.raises(ValueError, match="a number, a list of numbers or a callable of t is needed"):
            npf.GDA(beta=0.1, eta=eta)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eta = 0\.0 at t = 1"):
        npf.GDA(beta=0.1, eta=[0.5, 0.0])
    with pytest.raises(ValueError, match=r"eta \* beta = 2 > 1"):
        npf.NashMD(beta=0.1, eta=[5.0, 20.0])
    with pytest.raises(ValueError, match=r"beta = \[0.1, 0.2\]: one number is needed"):
        npf.NashMD(beta=[0.1, 0.2], eta=1.0)  # type: ignore[arg-type]


def test_a_scheduled_rule_is_recognised() -> None:
    assert isinstance(npf.NashMD(beta=0.1), ScheduledRule)
    assert not isinstance(npf.COMAL(beta=0.1), ScheduledRule)


def test_step_sizes() -> None:
    np.testing.assert_array_equal(npf.MWU(eta=0.25).step_sizes(3, 6), [0.25] * 3)
    np.testing.assert_array_equal(npf.NashMD(beta=0.5).step_sizes(1, 3), [4.0 / 3.0, 1.0])
    assert npf.EGPO(beta=0.25).step_size(7) == 0.8


def test_a_constant_rule_says_the_same_object_again() -> None:
    rule = npf.EGPO(beta=0.1)
    assert rule.steps(0) is rule.steps(10**6)


def test_rules_are_values() -> None:
    assert npf.GDA(beta=0.1, eta=0.2) == npf.GDA(beta=0.1, eta=0.2)
    assert npf.GDA(beta=0.1, eta=0.2) != npf.GDA(beta=0.1, eta=0.3)
    with pytest.raises(AttributeError):
        npf.GDA(beta=0.1).beta = 0.2  # type: ignore[misc]
    with pytest.raises(TypeError):
        npf.GDA(0.1)  # type: ignore[misc]
