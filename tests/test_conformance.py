"""Every named rule passes the conformance suite; rules with a slip, and a broken core, do not."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import nashpref as npf
from nashpref import MirrorStep, dynamic_programming, markov_interpreter, testing
from nashpref.games import markov
from nashpref.interpreter import Iterate, NamedPolicies
from nashpref.markov_interpreter import MarkovInterpreter, MarkovIterate
from nashpref.matrix_interpreter import MatrixInterpreter
from nashpref.mirror import toward_reference
from nashpref.policies import normalise, uniform
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
    assert {"markov_two_players", "markov_fixed_point", "markov_small_steps", "markov_one_step"} <= set(names)
    assert len(names) == 26


def test_without_a_step_size_the_limit_is_left_out() -> None:
    assert not {"small_steps", "markov_small_steps"} & checks(npf.BestResponse(beta=0.5)).keys()


@dataclass(frozen=True)
class MovingReference:
    """Optimistic steps whose reference moves: an opponent is met again when another reference counts."""

    beta: float = 0.2
    target_beta: float = 0.0

    def steps(self, t: int) -> Sequence[MirrorStep]:
        program = npf.OGDA(beta=self.beta, eta=0.5).steps(t)
        return (*program, MirrorStep("reference", {"current": 1.0})) if t % 2 else program


def test_action_values_follow_a_reference_that_moves() -> None:
    checks(MovingReference())["markov_two_players"]()


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
    limits = ("vanishing_steps", "markov_vanishing_steps")
    for name in limits:
        assert "the opponent is not the one intended" in fails(suite, name)
    for name in suite.keys() - set(limits):
        suite[name]()


def test_nash_md_with_a_constant_step_has_no_exact_fixed_point_and_no_limit() -> None:
    rule = npf.NashMD(beta=0.1, eta=0.5)
    fails(checks(rule), "fixed_point", "markov_fixed_point")
    for name in ("vanishing_steps", "markov_vanishing_steps"):
        assert "does not vanish" in fails(checks(rule, exact_fixed_point=False), name)


def test_a_rule_with_a_hidden_counter_is_caught() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def steps(self, t: int) -> Sequence[MirrorStep]:
            self.calls += 1
            return [current({"current": 1.0}, {"current": 1.0 / self.calls})]

    assert "the calls before it" in fails(checks(Counting()), "determinism")
    assert "in the geometry 'occupancy'" in fails(checks(Counting()), "markov_determinism")


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

    names = ("simplex", "shift_invariance", "markov_simplex", "markov_shift_invariance")
    assert "leaves the finite numbers" in fails(checks(Huge()), *names)


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


# --- a broken interpreter of Markov games ---

Patch = Callable[[pytest.MonkeyPatch], None]


def soft(
    index: Callable[[int], int] = lambda h: h, flow: float = 1.0, sign: float = 1.0
) -> Callable[..., tuple[Any, Any, Any]]:
    """`soft_response` with slips: the temperature of another step, or a normaliser that is not passed on."""

    def response(game: npf.MarkovGame, log_prior: Any, gain: Any, temperature: Any = None) -> Any:
        log_pi = np.empty_like(log_prior)
        c = [1.0] * game.horizon if temperature is None else temperature

        def backup(h: int, q: Any) -> Any:
            layer = game.layers[h]
            prior = log_prior[:, layer]
            logits = prior + q / c[h]
            total = logsumexp(logits)
            log_pi[:, layer] = logits - total[..., None]
            return c[index(h)] * (total - (1.0 - flow) * logsumexp(prior))

        value = dynamic_programming.backward_pass(game, sign * gain, backup)
        return log_pi, np.exp(log_pi), value

    return response


def logsumexp(logits: Any) -> Any:
    return np.logaddexp.reduce(logits, axis=-1)


def replaced(name: str, broken: Any) -> Patch:
    return lambda patch: patch.setattr(markov_interpreter, name, broken)


def same_state(game: npf.MarkovGame, policy: Any, gain: Any, cost: Any) -> Any:
    """The lecture's box: Q(s, a) = Σ_b π(b|s) Q(s, a, s, b), both players in one state."""
    if not game.terminal:
        gain = gain.copy()
        for layer, A in zip(game.layers, game.payoffs, strict=True):
            n = layer.stop - layer.start
            here = A.reshape(n, game.actions, n, game.actions)
            gain[:, layer] = np.einsum("satb,itb,st->isa", here, policy[:, layer], np.eye(n))
    return dynamic_programming.action_values(game, policy, gain, cost)


def wrong_opponent(patch: pytest.MonkeyPatch) -> None:
    """Every step is taken against where the run started."""
    evaluate = MarkovInterpreter.evaluate

    def broken(self: MarkovInterpreter, step: MirrorStep, policies: NamedPolicies) -> Iterate:
        step = MirrorStep(
            step.to, step.anchors, {"start": sum(step.payoffs.values())} if step.payoffs else {}
        )
        return evaluate(self, step, policies)

    patch.setattr(MarkovInterpreter, "evaluate", broken)


def in_policies(change: Callable[[Any, MarkovInterpreter], Any]) -> Patch:
    """The logits of every step are changed."""
    evaluate = MarkovInterpreter.evaluate

    def broken(self: MarkovInterpreter, step: MirrorStep, policies: NamedPolicies) -> Iterate:
        log_pi, pi = normalise(change(evaluate(self, step, policies).log_policy, self))
        return MarkovIterate(self.game, log_pi, pi)

    return lambda patch: patch.setattr(MarkovInterpreter, "evaluate", broken)


def in_method(name: str, change: Callable[..., Any]) -> Patch:
    """What a method of `MarkovGame` returns is changed."""
    method = getattr(npf.MarkovGame, name)

    def broken(self: npf.MarkovGame, *args: Any) -> Any:
        return change(self, method(self, *args))

    return lambda patch: patch.setattr(npf.MarkovGame, name, broken)


def swapped_steps(patch: pytest.MonkeyPatch) -> None:
    """The preference of step h is that of step H − h."""
    restrict = markov._restrict_payoffs
    patch.setattr(markov, "_restrict_payoffs", lambda P, reached, A: restrict(P[::-1], reached, A))


def forgets_reference(patch: pytest.MonkeyPatch) -> None:
    full = npf.MarkovGame.full
    patch.setattr(npf.MarkovGame, "full", lambda self, flat, fill: full(self, flat, 1.0 / self.actions))


def shared_opponent(game: npf.MarkovGame, payoff: Any) -> Any:
    return np.broadcast_to(payoff.mean(axis=0), payoff.shape).copy()


def shifted_reward(logits: Any, self: MarkovInterpreter) -> Any:
    return logits * (1.0 + self.game.payoff(self.game.plan(np.exp(logits))).mean())


EGPO = npf.EGPO(beta=0.1, eta=0.5)
GDA = npf.GDA(beta=0.2, eta=1.0)
BROKEN_MARKOV: dict[str, tuple[Patch, npf.UpdateRule, tuple[str, ...]]] = {
    "wrong opponent": (
        wrong_opponent,
        EGPO,
        ("markov_two_players",),
    ),
    "opponent restarted in the same state": (
        replaced("action_values", same_state),
        GDA,
        ("markov_two_players", "markov_fixed_point", "markov_small_steps"),
    ),
    "unregularised Q": (
        replaced(
            "action_values",
            lambda game, pi, gain, cost: dynamic_programming.action_values(game, pi, gain, 0.0 * cost),
        ),
        GDA,
        ("markov_two_players", "markov_fixed_point", "markov_small_steps"),
    ),
    "swapped steps": (swapped_steps, GDA, ("markov_two_players", "markov_fixed_point")),
    "temperature of the step before": (
        replaced("soft_response", soft(index=lambda h: max(h - 1, 0))),
        npf.OMPO(),
        ("markov_two_players", "markov_small_steps"),
    ),
    "normaliser not passed on": (
        replaced("soft_response", soft(flow=0.0)),
        GDA,
        ("markov_two_players", "markov_fixed_point", "markov_small_steps"),
    ),
    "descent": (
        replaced("soft_response", soft(sign=-1.0)),
        GDA,
        ("markov_sign", "markov_two_players", "markov_fixed_point", "markov_small_steps"),
    ),
    "one opponent for all initial states": (
        in_method("payoff", shared_opponent),
        GDA,
        ("markov_initial_states",),
    ),
    "prefers early states": (
        in_policies(lambda log, self: log + 1e-6 * np.arange(log[0].size).reshape(log[0].shape)),
        GDA,
        ("markov_relabelling",),
    ),
    "payoffs that are not centred": (in_policies(shifted_reward), GDA, ("markov_shift_invariance",)),
    "probabilities that vanish": (
        in_policies(lambda log, self: np.where(log < -25.0, -np.inf, log)),
        GDA,
        ("markov_simplex",),
    ),
    "rounded": (in_policies(lambda log, self: np.round(log, 15)), GDA, ("markov_one_step",)),
    "sparse dynamics of a smaller number type": (
        in_method(
            "backward",
            lambda game, v: v if isinstance(game.transitions[0], np.ndarray) else v.astype(np.float32),
        ),
        GDA,
        ("markov_sparse",),
    ),
    "final states of another scale": (
        in_method("payoff", lambda game, q: q * 1.001 if game.terminal else q),
        GDA,
        ("markov_terminal", "markov_two_players"),
    ),
    "unreached states that are uniform": (
        forgets_reference,
        GDA,
        ("markov_padding", "markov_two_players"),
    ),
}


@pytest.fixture
def unshrunk() -> Iterator[None]:
    """That there is a failure is enough here: shrinking it takes a hundred times as long."""
    settings.register_profile("unshrunk", settings.get_profile("ci"), phases=[Phase.generate])
    settings.load_profile("unshrunk")
    yield
    settings.load_profile("ci")


@pytest.mark.usefixtures("unshrunk")
@pytest.mark.parametrize("slip", BROKEN_MARKOV)
def test_a_broken_markov_interpreter_is_caught(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, rule, names = BROKEN_MARKOV[slip]
    patch(monkeypatch)
    for name in names:
        with pytest.raises(AssertionError, match=f"^{name}: "):
            checks(rule)[name]()


def test_the_correct_soft_response_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slips of `soft` are slips: without one it is the interpreter's."""
    monkeypatch.setattr(markov_interpreter, "soft_response", soft())
    for rule in (GDA, npf.OMPO()):
        checks(rule)["markov_two_players"]()


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


def test_a_markov_game_shrinks_to_what_matters() -> None:
    from hypothesis import find

    def first_gap(game: npf.MarkovGame) -> float:
        return float(npf.duality_gap(game, uniform(game.policy_shape)))

    game = find(testing.markov_games(), lambda game: first_gap(game) > 0.1)
    assert game.horizon == 1
    assert game.actions == 2
    assert game.states <= 2


MARKOV_KINDS: dict[str, Callable[[npf.MarkovGame], bool]] = {
    "final states": lambda game: game.terminal,
    "every step": lambda game: not game.terminal,
    "sparse": lambda game: not isinstance(game.transitions[0], np.ndarray) if game.terminal else False,
    "several initial states": lambda game: len(game.initial_states) > 1,
    "states that are not reached": lambda game: game.flat_shape[1] < game.horizon * game.states,
    "states that only one start reaches": lambda game: not game.reached_from[:, game.layers[-1]].all(),
    "certain preferences": lambda game: max(A.max() for A in game.payoffs) == 0.5,
    "the same at every step": lambda game: len(set(map(id, game.payoffs))) < len(game.payoffs),
    "dynamics that are not deterministic": lambda game: any((T.max() < 1.0) for T in game.transitions),
}


@pytest.mark.parametrize("kind", MARKOV_KINDS)
def test_every_kind_of_markov_game_is_drawn(kind: str) -> None:
    from hypothesis import find

    options = settings(max_examples=300, phases=[Phase.generate])
    assert find(testing.markov_games(), MARKOV_KINDS[kind], settings=options) is not None
