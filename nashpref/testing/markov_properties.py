"""What every rule of this library satisfies on Markov games, one function for each property.

As `properties`; each is checked in every geometry that applies to the rule.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import strategies as st
from numpy.random import Generator

from nashpref.games import zoo
from nashpref.games.markov import MarkovGame
from nashpref.games.matrix import MatrixGame
from nashpref.mirror import Geometry, UpdateRule, target_beta
from nashpref.policies import FloatArray, IntArray
from nashpref.solve import solve
from nashpref.testing.cases import Case, require, same, tried_on
from nashpref.testing.markov_cases import (
    STEPS,
    MarkovCase,
    at_equilibrium,
    generators,
    geometries,
    in_every_geometry,
    markov_cases,
    markov_cases_at_equilibrium,
    ways_to_a_winner,
)
from nashpref.testing.markov_games import Description, descriptions
from nashpref.testing.markov_oracle import Play, markov_two_player_iterates
from nashpref.testing.properties import STAYS, Scaled, follows_flow, on_simplex, slowed, vanishes

SHARE = 10  # every example is run in two or three geometries
LIMIT_STEPS = 2000


@tried_on(markov_cases(), share=SHARE)
@in_every_geometry
def markov_determinism(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """Running twice gives the same bits."""
    first, second = case.iterates(rule, geometry), case.iterates(rule, geometry)
    same(first, second, "running twice", rule, case, tolerance=0.0)


@tried_on(st.tuples(markov_cases(spread=None), st.sampled_from([1e-12, 1e-3, 1.0, 1e3, 1e6])), share=SHARE)
@in_every_geometry
def markov_simplex(rule: UpdateRule, case: tuple[MarkovCase, float], geometry: Geometry) -> None:
    """Every iterate is a policy and every gap a number, from masses of 1e-300, at payoffs of 1e-12 … 1e6."""
    where, scale = case
    on_simplex(where.run(Scaled(rule, scale), geometry), rule, f"payoffs times {scale:g}\n{where}")


@tried_on(markov_cases(spread=3.0), share=SHARE)
@in_every_geometry
def markov_two_players(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """Self-play is the two-player game, played out by two players who follow their joint state."""
    rows, columns = markov_two_player_iterates(case.game, rule, case.start, case.reference, STEPS, geometry)
    same(rows, columns, "row against column player", rule, case)
    same(case.iterates(rule, geometry), rows, "self-play against the row player", rule, case)


@tried_on(ways_to_a_winner(), share=SHARE)
@in_every_geometry
def markov_sign(rule: UpdateRule, case: tuple[MarkovCase, IntArray], geometry: Geometry) -> None:
    """Where an action leads to a final state that beats every other it gains mass in the first iteration."""
    where, way = case
    iterates = where.iterates(rule, geometry, 1)
    reached = Play.of(where.game, 0, int(where.game.initial_states[0])).reached & (way >= 0)
    for h, s in np.argwhere(reached).tolist():
        before, after = iterates[:, h, s, way[h, s]]
        require(
            after > before,
            f"action {way[h, s]} in h = {h}, s = {s} leads to the winner and falls from {before} to {after}",
            rule,
            where,
        )


# --- one game, written in two ways ---


@tried_on(st.tuples(markov_cases(), generators()), share=SHARE)
@in_every_geometry
def markov_relabelling(rule: UpdateRule, case: tuple[MarkovCase, Generator], geometry: Geometry) -> None:
    """Renaming the states and actions of every step renames the iterates."""
    plain, rng = case
    game = plain.game
    H, S, A = game.shape
    states, actions = rng.permuted([range(S)] * (H + 1), axis=1), rng.permuted([range(A)] * H, axis=1)
    T = np.array([game.transition[h][np.ix_(states[h], actions[h], states[h + 1])] for h in range(H)])
    if game.terminal:
        P = game.preference[np.ix_(states[H], states[H])]
    else:
        P = np.array([game.preference[h][np.ix_(*[states[h], actions[h]] * 2)] for h in range(H)])
    other = Description(T, P, game.initial[states[0]])
    starts = np.searchsorted(game.initial_states, states[0][other.initial_states])

    def renamed(policy: FloatArray) -> FloatArray:
        each = policy.reshape(-1, len(starts), H, S, A)[:, starts]
        places = (each[:, :, h][:, :, *np.ix_(states[h], actions[h])] for h in range(H))
        return np.stack(list(places), axis=2).reshape(policy.shape)

    case_renamed = MarkovCase(other, renamed(plain.start), renamed(plain.reference))
    same(
        case_renamed.iterates(rule, geometry),
        renamed(plain.iterates(rule, geometry)),
        f"renaming the states {states.tolist()} and actions {actions.tolist()}",
        rule,
        plain,
    )


@tried_on(st.tuples(markov_cases(), generators()), share=SHARE)
@in_every_geometry
def markov_padding(rule: UpdateRule, case: tuple[MarkovCase, Generator], geometry: Geometry) -> None:
    """States that cannot be reached change nothing, and keep the reference."""
    plain, rng = case
    game = plain.game
    (H, S, A), more = game.shape, int(rng.integers(1, 3))
    steps, kept, actions = np.arange(H), np.sort(rng.permutation(S + more)[:S]), np.arange(A)
    T = rng.dirichlet(np.ones(S + more), (H, S + more, A))
    T[:, kept] = 0.0
    T[np.ix_(steps, kept, actions, kept)] = game.transition
    if game.terminal:
        P = zoo.random_preferences(S + more, rng).preferences.copy()
        P[np.ix_(kept, kept)] = game.preference
    else:
        P = zoo.random_preferences((S + more) * A, rng, batch=H).preferences
        P = P.reshape(H, S + more, A, S + more, A).copy()
        P[np.ix_(steps, kept, actions, kept, actions)] = game.preference
    rho = np.zeros(S + more)
    rho[kept] = game.initial
    padded = Description(T, P, rho)

    def pad(policy: FloatArray) -> FloatArray:
        wide = rng.dirichlet(np.ones(A), padded.policy_shape[:-1])
        wide[..., kept, :] = policy
        return wide

    other = MarkovCase(padded, pad(plain.start), pad(plain.reference))
    wide = other.iterates(rule, geometry)
    expected = np.broadcast_to(other.reference, wide.shape).copy()
    expected[..., kept, :] = plain.iterates(rule, geometry)
    same(wide, expected, f"{more} more states", rule, plain, tolerance=0.0)


@tried_on(markov_cases(), share=SHARE)
@in_every_geometry
def markov_sparse(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """Sparse transitions give the iterates of dense ones."""
    sparse = dataclasses.replace(case, build=lambda game: game.game(sparse=True))
    same(sparse.iterates(rule, geometry), case.iterates(rule, geometry), "sparse", rule, case)


@tried_on(markov_cases(descriptions(terminal=True)), share=SHARE)
@in_every_geometry
def markov_terminal(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """A preference of final states is one of the last step's places: the expectation over where they lead."""
    game = case.game
    H, S, A = game.shape
    P = np.full((H, S, A, S, A), 0.5)
    last = game.transition[-1].reshape(S * A, S)
    P[-1] = 0.5 + (last @ (game.preference - 0.5) @ last.T).reshape(S, A, S, A)
    stepwise = dataclasses.replace(case, game=dataclasses.replace(game, preference=P))
    same(stepwise.iterates(rule, geometry), case.iterates(rule, geometry), "as the last step's", rule, case)


@tried_on(markov_cases(descriptions(min_starts=2, max_starts=3)), share=SHARE)
@in_every_geometry
def markov_initial_states(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """Several initial states are one after the other; gaps are averaged over their distribution."""
    together = case.run(rule, geometry)
    gap = np.zeros(STEPS + 1)
    for i, (s, own, mu) in enumerate(case.by_start()):
        alone = MarkovCase(case.game.starting_in(s), own, mu).run(rule, geometry)
        same(np.asarray(together.policies)[:, i], np.asarray(alone.policies), f"from state {s}", rule, case)
        gap += case.game.initial[s] * alone.gap
    same(together.gap, gap, "the mean gap", rule, case)


@tried_on(markov_cases(descriptions(max_horizon=1, max_starts=1, terminal=False)), share=SHARE)
@in_every_geometry
def markov_one_step(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """One step is the matrix game of the actions in the initial state, bit for bit."""
    s = int(case.game.initial_states[0])
    matrix = Case(MatrixGame(case.game.preference[0, s, :, s]), case.start[0, s], case.reference[0, s])
    same(
        case.iterates(rule, geometry)[:, 0, s],
        matrix.iterates(rule, STEPS),
        "as a matrix game",
        rule,
        case,
        tolerance=0.0,
    )


class _Shaped(MarkovGame):
    """Payoffs plus `φ_h(s) − E φ_{h+1}(s')`, or plus a constant where final states are compared."""

    potential: FloatArray

    def payoff(self, occupancy: FloatArray) -> FloatArray:
        q = super().payoff(occupancy)
        if self.terminal:
            return np.asarray(q + self.potential[0])
        for h, layer in enumerate(self.layers):
            q[:, layer] += self.potential[layer, None]
            if h + 1 < self.horizon:
                q[:, layer] -= self.backward(h, self.potential[None, self.layers[h + 1]])
        return q


@tried_on(st.tuples(markov_cases(), st.integers(0, 2**32 - 1)), share=SHARE)
@in_every_geometry
def markov_shift_invariance(rule: UpdateRule, case: tuple[MarkovCase, int], geometry: Geometry) -> None:
    """What no policy can influence changes nothing: a constant added to a step, or a potential."""
    plain, seed = case

    def shaped(game: Description) -> MarkovGame:
        built = _Shaped(game.transition, game.preference, game.initial)
        built.potential = np.random.default_rng(seed).uniform(-3.0, 3.0, built.flat_shape[1])
        return built

    other = dataclasses.replace(plain, build=shaped)
    same(other.iterates(rule, geometry), plain.iterates(rule, geometry), "a potential", rule, plain)


# --- where the iterates go ---


@in_every_geometry
def _stays(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    iterates = case.iterates(rule, geometry)
    expected = np.broadcast_to(iterates[0], iterates.shape)
    same(iterates, expected, "leaving the equilibrium", rule, case, tolerance=STAYS)


@tried_on(st.data(), share=SHARE)
def markov_fixed_point(rule: UpdateRule, data: st.DataObject) -> None:
    """An iteration that starts at the equilibrium, known by construction, stays there."""
    _stays(rule, data.draw(markov_cases_at_equilibrium(rule)))


def markov_vanishing_steps(rule: UpdateRule) -> None:
    """The rule's schedule reaches the equilibrium, though no iteration of it leaves it in place."""
    rng = np.random.default_rng(0)
    T = rng.dirichlet(np.ones(3), (2, 3, 2))
    game = Description(T, zoo.random_preferences(3, rng).preferences, np.eye(3)[0])
    pi = rng.dirichlet(np.full(2, 5.0), (2, 3))
    case = at_equilibrium(game, pi, rule, pi)
    for geometry in geometries(rule):
        at_rest = case.iterates(rule, geometry)
        moved = float(np.abs(at_rest - at_rest[0]).max())
        steps, record, mu = LIMIT_STEPS, [LIMIT_STEPS // 10], case.reference
        trace = solve(case.game.game(), rule, steps, geometry=geometry, reference=mu, record=record)
        vanishes(trace, moved, f"markov_vanishing_steps: in the geometry {str(geometry)!r}", rule, case)


@tried_on(markov_cases(spread=3.0), share=SHARE)
@in_every_geometry
def markov_small_steps(rule: UpdateRule, case: MarkovCase, geometry: Geometry) -> None:
    """As η → 0 an iteration moves along `d(log π_h)/dt = Q_h/c_h + β log(μ_h/π_h) + const` in every state.

    Q is regularised, and the flow is the same per state as on occupancy measures (c = 1). As `small_steps`.
    """
    eta = 1e-6
    beta = target_beta(rule)
    if getattr(rule, "beta", 0.0) > beta:
        case = dataclasses.replace(case, reference=case.start)
    iterates = case.iterates(slowed(rule, eta), geometry, 20)
    H, S, A = case.game.shape
    c = np.arange(H, 0, -1.0) if geometry is Geometry.WEIGHTED_OCCUPANCY else np.ones(H)
    pi, later = (iterates[t].reshape(-1, H, S, A) for t in (10, 20))
    flow = np.empty_like(pi)
    for i, (s, _, mu) in enumerate(case.by_start()):
        play = Play.of(case.game, 0, s)
        Q = play.action_values(pi[i], pi[i], beta, mu) / c[:, None, None]
        flow[i] = np.where(play.reached[:, :, None], Q + beta * np.log(mu / pi[i]), 0.0)
    follows_flow(pi, flow, (np.log(later) - np.log(pi)) / (10.0 * eta), rule, case)
