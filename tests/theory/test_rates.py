"""Fitted rates: on series with a known answer, and on runs against their theorems."""

import numpy as np
import pytest

import nashpref as npf
from nashpref import theory

GAMES = ["rock-paper-scissors", "COMAL's cycle", "random 10 a", "tournament 9", "Bradley–Terry 5"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_exact_laws_are_recovered(rng):
    t = np.arange(1.0, 3001.0)
    power = theory.power_law(t, 3.0 * t**-1.5, burn_in=10, rng=rng)
    assert power.slope == pytest.approx(-1.5, rel=1e-12)
    assert np.exp(power.intercept) == pytest.approx(3.0, rel=1e-9)
    assert (power.first, power.last) == (10.0, 3000.0)
    assert power.high - power.low < 1e-9
    decay = theory.geometric(t[:200], 3.0 * 0.9 ** t[:200], burn_in=0, rng=rng)
    assert decay.factor == pytest.approx(0.9, rel=1e-12)


def test_interval_covers_the_slope_of_a_correlated_series():
    """Autoregressive noise, as an oscillating trace has: blocks cover where single points would not."""
    t = np.arange(1.0, 401.0)
    hits, width = 0, []
    for seed in range(100):
        noise = np.random.default_rng(seed).standard_normal(400)
        for k in range(1, 400):
            noise[k] += 0.8 * noise[k - 1]
        fit = theory.geometric(
            t, np.exp(-0.01 * t + 0.1 * noise), burn_in=0, rng=np.random.default_rng(seed), resamples=300
        )
        hits += fit.low <= -0.01 <= fit.high
        width.append(fit.high - fit.low)
    assert hits >= 80  # nominal 95; the bootstrap of correlated series is known to fall short
    assert np.mean(width) < 0.005


def test_the_burn_in_is_obeyed(rng):
    t = np.arange(1.0, 2001.0)
    values = np.where(t < 100, 5.0, 500.0 / t)
    assert theory.power_law(t, values, burn_in=100, rng=rng).slope == pytest.approx(-1.0, rel=1e-9)
    assert theory.power_law(t, values, burn_in=1, rng=rng).slope > -0.9


def test_every_decade_has_its_vote(rng):
    """Half of the log-time has slope −1, half −3: the fit lies between, not at the crowded end."""
    t = np.arange(1.0, 10_001.0)
    values = np.where(t < 100, 1 / t, 1e4 / t**3)
    assert -2.6 < theory.power_law(t, values, burn_in=1, rng=rng).slope < -1.4


def test_bad_windows_are_refused(rng):
    t = np.arange(20.0)
    with pytest.raises(ValueError, match=r"5 points from burn_in = 15 on"):
        theory.geometric(t, np.ones(20), burn_in=15, rng=rng)
    with pytest.raises(ValueError, match=r"value 0.0 at step 17 has no logarithm"):
        theory.geometric(t, np.where(t == 17, 0.0, 1.0), burn_in=0, rng=rng)
    with pytest.raises(ValueError, match="both must be"):
        theory.geometric(t, np.ones(19), burn_in=0, rng=rng)


@pytest.mark.parametrize("name", GAMES)
def test_average_iterates(name, rng):
    """Upper bounds: MWU tuned to each horizon falls no more slowly than T^-1/2, OGDA than T^-1."""
    game = theory.named_games()[name]
    mu = theory.references(game)["random"]
    horizons = np.unique(np.geomspace(100, 10_000, 12).astype(int))
    D = -np.log(mu.min())
    gaps = [
        npf.solve(game, npf.MWU(eta=np.sqrt(8 * D / T)), int(T) - 1, reference=mu, record=[0]).average_gap[-1]
        for T in horizons
    ]
    assert (gaps <= np.sqrt(2 * D / horizons)).all()
    mwu = theory.power_law(horizons, gaps, burn_in=1, rng=rng)
    assert mwu.low <= -0.5
    assert mwu.slope < -0.4
    trace = npf.solve(game, npf.OGDA(), 50_000, reference=mu)
    ogda = theory.power_law(trace.steps + 1, trace.average_gap, burn_in=1000, rng=rng)
    assert ogda.slope <= -0.999


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(("beta", "burn_in"), [(1.0, 200), (0.1, 2000)])
def test_decreasing_steps(name, beta, burn_in, rng):
    """Measurements: T^-4 for GDA, whose fixed point is exact, T^-2 for Nash-MD, whose fixed point moves."""
    game = theory.named_games()[name]
    mu = theory.references(game)["random"]
    star = npf.equilibrium(game, beta, mu).policy
    for rule, slope in ((npf.GDA(beta=beta), -4.0), (npf.NashMD(beta=beta), -2.0)):
        trace = npf.solve(game, rule, 10_000, reference=mu, equilibrium=star)
        fit = theory.power_law(trace.steps, trace.kl, burn_in=burn_in, rng=rng)
        assert fit.slope == pytest.approx(slope, abs=0.03)
        assert fit.high < -1.0  # steeper than the theorems' T^-1
