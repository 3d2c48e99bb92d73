"""The predicted contraction factors and step limits against runs of `solve`."""

import math

import numpy as np
import pytest

import nashpref as npf
from nashpref import theory


def local_kl(game, rule, steps, beta=0.0, mu=None, noise=1e-4):
    """KL to the equilibrium at every step, started close to it."""
    star = npf.equilibrium(game, beta, mu).policy
    start = star * np.exp(noise * np.random.default_rng(0).standard_normal(game.n))
    start /= start.sum()
    return npf.solve(game, rule, steps, reference=mu, start=start, equilibrium=star, record=1).kl


def measured_factor(kl, floor=1e-20):
    """Fitted to the second half, at least 8 points, of what lies above the floor of π*'s accuracy."""
    end = int(np.argmax(kl < floor)) or len(kl)
    late = max(min(end // 2, end - 8), 0)
    return theory.geometric(np.arange(end), kl[:end], burn_in=late, rng=np.random.default_rng(0)).factor


def test_known_frequencies():
    assert theory.spectrum(npf.zoo.rock_paper_scissors()).omega == pytest.approx(1 / math.sqrt(12), rel=1e-12)
    assert theory.spectrum(npf.zoo.condorcet_cycle(2 / 3)).omega == pytest.approx(
        1 / math.sqrt(108), rel=1e-12
    )
    assert theory.spectrum(npf.zoo.comal()).omega == pytest.approx(1 / math.sqrt(3) / 2.764, rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_frequencies_are_the_eigenvalues_of_A_sigma(beta):
    game = npf.zoo.random_preferences(7, np.random.default_rng(12)) if beta else npf.zoo.comal()
    mu = np.arange(1.0, game.n + 1) / np.arange(1.0, game.n + 1).sum()
    pi = npf.equilibrium(game, beta, mu).policy
    eigenvalues = np.linalg.eigvals(game.payoffs @ (np.diag(pi) - np.outer(pi, pi)))
    np.testing.assert_allclose(eigenvalues.real, 0.0, atol=1e-9)
    expected = np.sort(np.abs(eigenvalues.imag))[::-1][:-1]
    np.testing.assert_allclose(theory.spectrum(game, beta, mu).frequencies, expected, atol=1e-9)


def closed_forms(omega, eta, beta):
    """The multipliers of notes/spectrum.md."""
    x, b = eta * omega, eta * beta
    forms = {
        npf.GDA: 1 - b + 1j * x,
        npf.EGPO: (1 - b) * (1 + 1j * x) - x**2,
        npf.NashMP: (1 + b + 1j * x - x**2) / (1 + b) ** 2,
        npf.OGDA: np.roots([1.0, -(1 - b + 2j * x), 1j * x]),
    }
    return forms | ({npf.MMD: (1 + 1j * x) / (1 + b)} if beta else {})


@pytest.mark.parametrize("beta", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("eta", [0.05, 0.7, 2.5])
def test_closed_forms(beta, eta):
    local = theory.spectrum(npf.zoo.random_preferences(5, np.random.default_rng(3)), beta)
    for rule in closed_forms(0.0, eta, beta):
        moduli = [np.abs(closed_forms(w, eta, beta)[rule]).max() ** 2 for w in local.frequencies]
        outside = math.exp(eta * local.drift)
        assert local.factor(rule(beta=beta, eta=eta)) == pytest.approx(max([*moduli, outside]), rel=1e-9)


def test_gda_on_rock_paper_scissors():
    """ω² = 1/12 with a uniform reference: (1 − 0.11)² + 1.1²/12."""
    game, rule = npf.zoo.rock_paper_scissors(), npf.GDA(beta=0.1, eta=1.1)
    factor = theory.spectrum(game, 0.1).factor(rule)
    assert factor == pytest.approx(0.89**2 + 1.21 / 12, rel=1e-12)
    assert measured_factor(local_kl(game, rule, 300, 0.1)) == pytest.approx(factor, rel=1e-6)


RULES = [npf.GDA, npf.MMD, npf.OGDA, npf.EGPO, npf.NashMP]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("beta", [0.1, 0.03])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_regularised_factor_is_measured(rule, beta, share):
    for game in (npf.zoo.comal(), npf.zoo.rock_paper_scissors()):
        mu = np.array([0.2, 0.3, 0.5])
        local = theory.spectrum(game, beta, mu)
        eta = share * min(local.step_limit(lambda eta: rule(beta=beta, eta=eta)), 20.0)
        kl = local_kl(game, rule(beta=beta, eta=eta), 3000, beta, mu)
        assert measured_factor(kl) == pytest.approx(local.factor(rule(beta=beta, eta=eta)), rel=1e-3)


@pytest.mark.parametrize("rule", [npf.GDA, npf.MMD])
def test_gda_factor_on_larger_games(rule):
    """The largest ω governs GDA, and it lives on the responses that matter: four digits."""
    for seed in range(4):
        game = npf.zoo.random_preferences(10, np.random.default_rng(seed))
        mu = theory.references(game)["random"]
        local = theory.spectrum(game, 0.1, mu)
        eta = 0.9 * local.step_limit(lambda eta: rule(beta=0.1, eta=eta))
        kl = local_kl(game, rule(beta=0.1, eta=eta), 3000, 0.1, mu)
        assert measured_factor(kl) == pytest.approx(local.factor(rule(beta=0.1, eta=eta)), rel=1e-3)


@pytest.mark.parametrize("rule", [npf.EGPO, npf.OGDA])
def test_slow_modes_of_the_two_call_rules(rule):
    """With small η the slowest mode has ω ≈ 0: (1 − ηβ)², twice as fast as the theorem."""
    game = npf.zoo.random_preferences(10, np.random.default_rng(0))
    local = theory.spectrum(game, 0.1)
    assert local.factor(rule(beta=0.1, eta=0.4)) == pytest.approx(0.96**2, rel=1e-3)
    assert measured_factor(local_kl(game, rule(beta=0.1, eta=0.4), 1500, 0.1)) <= 0.96**2 * (1 + 1e-4)


@pytest.mark.parametrize("rule", [npf.OGDA, npf.EGPO, npf.ONPO])
def test_unregularised_factor_is_measured(rule):
    for game in (npf.zoo.rock_paper_scissors(), npf.zoo.comal()):
        factor = theory.spectrum(game).factor(rule(eta=1.2))
        assert factor < 1.0
        assert measured_factor(local_kl(game, rule(eta=1.2), 3000)) == pytest.approx(factor, rel=1e-3)


def test_mass_outside_the_support_decays_by_the_drift():
    game = npf.zoo.bradley_terry([0.0, 1.0, 0.3])  # pure equilibrium: there is nothing else
    local = theory.spectrum(game)
    assert local.omega == 0.0
    assert local.drift == pytest.approx(game.payoffs[2, 1])
    mu = np.full(3, 1 / 3)
    for rule in (npf.MWU(eta=0.5), npf.OGDA(eta=0.5), npf.EGPO(eta=0.5), npf.ONPO(eta=0.5)):
        kl = npf.solve(game, rule, 400, reference=mu, equilibrium=[0, 1, 0], record=1).kl
        assert local.factor(rule) == pytest.approx(math.exp(0.5 * local.drift), rel=1e-12)
        assert measured_factor(kl, 1e-14) == pytest.approx(local.factor(rule), rel=1e-3)


def test_games_without_rotation():
    """A strict pure equilibrium attracts with any step; where everything ties, no step moves anything."""
    pure, tied = (
        theory.spectrum(npf.zoo.bradley_terry([0.0, 1.0])),
        theory.spectrum(npf.zoo.bradley_terry([1.0, 1.0])),
    )
    assert pure.step_limit(lambda eta: npf.MWU(eta=eta)) == np.inf
    assert tied.step_limit(lambda eta: npf.MWU(eta=eta)) == 0.0
    assert tied.factor(npf.MWU(eta=1.0)) == 1.0


def test_dominated_responses_leave_the_modes():
    game = npf.zoo.with_dominated(npf.zoo.comal(), 0, np.random.default_rng(0))
    np.testing.assert_allclose(
        theory.spectrum(game).frequencies, theory.spectrum(npf.zoo.comal()).frequencies, atol=1e-12
    )
    assert theory.spectrum(game).drift < 0.0


def test_step_limits_in_closed_form():
    game = npf.zoo.rock_paper_scissors()
    free, local = theory.spectrum(game), theory.spectrum(game, 0.1)
    w, b = local.omega, 0.1
    assert free.step_limit(lambda eta: npf.MWU(eta=eta)) == 0.0
    assert free.step_limit(lambda eta: npf.EGPO(eta=eta)) == pytest.approx(1 / w, rel=1e-9)
    assert free.step_limit(lambda eta: npf.OGDA(eta=eta)) == pytest.approx(2.0, rel=1e-9)
    assert free.step_limit(lambda eta: npf.ONPO(eta=eta)) == pytest.approx(2.0, rel=1e-9)
    gda, mmd = (lambda eta: npf.GDA(beta=b, eta=eta)), (lambda eta: npf.MMD(beta=b, eta=eta))
    assert local.step_limit(gda) == pytest.approx(2 * b / (b**2 + w**2), rel=1e-9)
    assert local.step_limit(mmd) == pytest.approx(2 * b / (w**2 - b**2), rel=1e-9)
    strong = theory.spectrum(game, 1.0)
    assert strong.step_limit(lambda eta: npf.MMD(beta=1.0, eta=eta)) == math.inf  # β > ω: any step
    assert strong.step_limit(lambda eta: npf.GDA(beta=1.0, eta=eta)) == pytest.approx(1.0, rel=1e-9)  # ηβ ≤ 1
    # The regularised OGDA's boundary, as parametrised in notes/spectrum.md.
    eta = local.step_limit(lambda eta: npf.OGDA(beta=b, eta=eta))
    phi = np.linspace(0.5, 1.3, 400_001)
    c, x = np.cos(phi), np.sin(phi) / (2 - np.cos(phi))
    on_curve = np.abs((1 - (1 + 2 * c - 2 * c**2) / (2 - c)) / b - x / w)
    assert eta == pytest.approx(x[on_curve.argmin()] / w, rel=1e-4)


def test_extragradient_optimum():
    local = theory.spectrum(npf.zoo.rock_paper_scissors())
    eta = 1 / (math.sqrt(2) * local.omega)
    assert local.factor(npf.EGPO(eta=eta)) == pytest.approx(0.75, rel=1e-12)
    assert min(local.factor(npf.EGPO(eta=eta * s)) for s in (0.98, 1.02)) > 0.75
    kl = local_kl(npf.zoo.rock_paper_scissors(), npf.EGPO(eta=eta), 200)
    assert measured_factor(kl) == pytest.approx(0.75, rel=1e-5)


@pytest.mark.parametrize(
    ("game", "rule", "limit", "tight"),
    [
        (npf.zoo.rock_paper_scissors(), npf.OGDA, 2.0, 0.99),
        (npf.zoo.condorcet_cycle(), npf.OGDA, 6.0, 0.99),
        (npf.zoo.comal(), npf.OGDA, 2.7638540, 0.99),
        (npf.zoo.rock_paper_scissors(), npf.EGPO, math.sqrt(12), 0.99),
    ],
)
def test_optimism_converges_up_to_its_limit(game, rule, limit, tight):
    """At 0.99 of the limit (RPS: η = 1.98) the run converges; at 1.01 (2.02) it leaves and never returns."""
    assert theory.spectrum(game).step_limit(lambda eta: rule(eta=eta)) == pytest.approx(limit, rel=1e-7)
    mu = np.array([0.34, 0.33, 0.33])
    assert npf.solve(game, rule(eta=tight * limit), 20_000, reference=mu).gap[-1] < 1e-10
    beyond = npf.solve(game, rule(eta=(2 - tight) * limit), 20_000, reference=mu)
    assert beyond.gap[len(beyond.gap) // 2 :].min() > 1e-3


def test_gda_beyond_its_limit_settles_on_a_cycle():
    game, mu = npf.zoo.condorcet_cycle(), np.array([0.5, 0.3, 0.2])
    limit = theory.spectrum(game, 0.03, mu).step_limit(lambda eta: npf.GDA(beta=0.03, eta=eta))
    for share, low, high in ((0.95, 0.0, 1e-12), (1.1, 1e-3, 10.0)):
        trace = npf.solve(game, npf.GDA(beta=0.03, eta=share * limit), 20_000, reference=mu)
        assert low <= trace.gap[-1] <= high


def test_a_rule_of_ones_own_is_predicted():
    """Three-step history MNPO: no closed form was written down for it, the program is enough."""
    game, rule = npf.zoo.comal(), npf.MNPO(beta=0.2, eta=0.5, weights=(0.5, 0.3, 0.2))
    local = theory.spectrum(game, 0.2)
    assert measured_factor(local_kl(game, rule, 1000, 0.2)) == pytest.approx(local.factor(rule), rel=1e-3)


@pytest.mark.parametrize(
    ("beta", "rule", "reason"),
    [
        (0.1, npf.NashMD(beta=0.1, eta=0.5), "π\\* is not a fixed point"),
        (0.1, npf.GDA(beta=0.1), "changes with t"),
        (0.1, npf.GDA(beta=0.2, eta=0.5), "seeks the equilibrium for β = 0.2; this spectrum has 0.1"),
        (0.0, npf.COMAL(beta=0.1, every=1), "moves its reference"),
    ],
)
def test_rules_without_a_fixed_spectrum_are_refused(beta, rule, reason):
    with pytest.raises(ValueError, match=reason):
        theory.spectrum(npf.zoo.comal(), beta).factor(rule)


def test_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch of 3"):
        theory.spectrum(npf.zoo.annotator_rankings())


def test_a_clone_makes_the_equilibrium_not_isolated():
    local = theory.spectrum(npf.zoo.with_clones(npf.zoo.comal(), 0))
    assert local.factor(npf.EGPO(eta=1.0)) == pytest.approx(1.0, abs=1e-9)
