"""The conformance suite: `test_my_rule = conformance(MyRule(beta=0.1, eta=0.2))`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

from nashpref.mirror import UpdateRule
from nashpref.testing import markov_properties as markov
from nashpref.testing import properties as prop


def conformance(rule: UpdateRule, *, exact_fixed_point: bool = True) -> Callable[..., None]:
    """A pytest test of everything that can be asked of `rule`, one test item for each property.

        test_my_rule = conformance(MyRule(beta=0.1, eta=0.2))

    Meant for a step size at which one iteration is of moderate size, ηβ ≤ 1 and η ≲ 3; the suite itself
    tries the extremes. On Markov games (`markov_…`) it is run on occupancy measures, per state, and, if its
    target is not regularised, with OMPO's weights. Properties that the rule gives no hold for are left out:
    `eta → 0` needs a dataclass with a field `eta`, the compiled interpreter needs numba.

    Args:
        rule: any `UpdateRule`. Its `beta` (or `target_beta`) says which equilibrium it seeks.
        exact_fixed_point: whether an iteration that starts at the equilibrium stays there. False for a rule
            that only reaches it as its step sizes vanish, as Nash-MD: the suite then runs the rule's own
            schedule to the limit, and requires that the equilibrium is indeed left at a finite step.
    """
    import pytest

    named = checks(rule, exact_fixed_point=exact_fixed_point)

    @pytest.mark.parametrize("name", named)
    def test(name: str) -> None:
        named[name]()

    return test


def checks(rule: UpdateRule, *, exact_fixed_point: bool = True) -> dict[str, Callable[[], None]]:
    """The checks of `conformance` by name, those that apply to `rule`; each raises `AssertionError`."""
    applicable = [
        prop.anchors_sum_to_one,
        prop.schedule,
        prop.determinism,
        prop.simplex,
        prop.permutation_equivariance,
        prop.shift_invariance,
        prop.clones,
        prop.sign,
        prop.two_players,
        prop.batch_equals_loop,
        prop.fixed_point if exact_fixed_point else prop.vanishing_steps,
        markov.markov_determinism,
        markov.markov_simplex,
        markov.markov_two_players,
        markov.markov_sign,
        markov.markov_relabelling,
        markov.markov_padding,
        markov.markov_sparse,
        markov.markov_terminal,
        markov.markov_initial_states,
        markov.markov_one_step,
        markov.markov_shift_invariance,
        markov.markov_fixed_point if exact_fixed_point else markov.markov_vanishing_steps,
    ]
    if "eta" in getattr(rule, "__dataclass_fields__", {}):
        applicable += [prop.small_steps, markov.markov_small_steps]
    if find_spec("numba") is not None:
        applicable.append(prop.compiled_equals_numpy)
    return {check.__name__: functools.partial(check, rule) for check in applicable}
