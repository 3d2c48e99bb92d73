"""Every loss: its gradient, and its stationary point by enumeration on tabular policies."""

import itertools
import math

import numpy as np
import pytest

import nashpref as npf
from nashpref.closed_forms import c2_dpo_pair, chi_po, rlhf
from nashpref.mirror import MirrorStep
from nashpref.policies import normalise

torch = pytest.importorskip("torch")
from nashpref.llm import losses  # noqa: E402

torch.set_num_threads(1)
N = 5
BETA, ETA = 0.4, 0.7
RNG = np.random.default_rng(3)
GAME = npf.zoo.random_preferences(N, RNG)
P = torch.tensor(GAME.preferences)
MU, PREVIOUS, OTHER = (RNG.dirichlet(np.ones(N)) for _ in range(3))
REWARD = RNG.normal(size=N)
SCORES = 3.0 * np.triu(RNG.normal(size=(N, N)), 1)
SCORES = SCORES - SCORES.T
I, J = map(torch.tensor, zip(*itertools.product(range(N), repeat=2), strict=True))


def log(policy):
    return torch.tensor(np.log(policy))


def pairs_of(log_policy):
    """log-probabilities of the first and the second of all N² ordered pairs."""
    return log_policy[I], log_policy[J]


def times(first, second):
    """The weight of each ordered pair when its two responses are drawn from these policies."""
    return torch.tensor(np.outer(first, second)).flatten()


def gradient(objective, policy):
    """The largest partial derivative by the logits of a tabular policy."""
    logits = log(policy).requires_grad_()
    objective(logits.log_softmax(0)).backward()
    return logits.grad.abs().max().item()


def minimise(objective, start):
    logits = log(start).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective(logits.log_softmax(0))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(0).numpy()


def mirror_step(anchors, payoff):
    """`π ∝ Π π_k^{w_k} e^payoff`, exactly."""
    return normalise(sum(w * np.log(p) for w, p in anchors) + payoff)[1]


def q(policy):
    return GAME.payoff(policy)


UNIFORM = torch.full((N * N,), 1.0 / N**2, dtype=torch.float64)
UNEVEN = torch.tensor(RNG.dirichlet(np.ones(N * N)))
BT = torch.tensor(REWARD[:, None] - REWARD[None, :]).sigmoid().flatten()
BINARY = P[I, J]  # the chance that the first of a pair is the chosen one
GDA = mirror_step([(1 - ETA * BETA, PREVIOUS), (ETA * BETA, MU)], ETA * q(PREVIOUS))
MWU = mirror_step([(1.0, PREVIOUS)], ETA * q(PREVIOUS))
NASH = npf.equilibrium(GAME, beta=BETA, reference=MU).policy
BASE = (1 - ETA * BETA) * np.log(PREVIOUS) + ETA * BETA * np.log(MU)
MIXTURE = normalise(BASE)[1]
LOG_Z_MWU = math.log(PREVIOUS @ np.exp(ETA * q(PREVIOUS)))
SCORE = SCORES @ PREVIOUS


def dpo(x):
    return (UNEVEN * losses.dpo(*pairs_of(x), *pairs_of(log(MU)), beta=BETA, p_chosen=BT)).sum()


def chi(x):
    return (UNEVEN * losses.chi_po(*pairs_of(x), *pairs_of(log(MU)), beta=BETA, p_chosen=BT)).sum()


def ipo(x, opponent=OTHER):
    loss = losses.ipo(*pairs_of(x), *pairs_of(log(MU)), beta=BETA)
    return (times(opponent, opponent) * BINARY * loss).sum()


def inpo(x, weights=None, soft=False):
    """With `soft`, the probability is the label; otherwise both outcomes are averaged over."""
    weights = times(PREVIOUS, PREVIOUS) if weights is None else weights
    loss = losses.inpo(
        *pairs_of(x),
        *pairs_of(log(MU)),
        *pairs_of(log(PREVIOUS)),
        beta=BETA,
        eta=ETA,
        p_chosen=BINARY if soft else 1.0,
    )
    return (weights * loss).sum() if soft else (2.0 * weights * BINARY * loss).sum()


def sppo(x, log_z=LOG_Z_MWU):
    win_rate = torch.tensor(q(PREVIOUS) + 0.5)
    return (torch.tensor(PREVIOUS) * losses.sppo(x, log(PREVIOUS), win_rate, eta=ETA, log_z=log_z)).sum()


def sppo_centred(x):
    win_rate = torch.tensor(q(PREVIOUS) + 0.5)
    return losses.sppo_centred(x[None], log(PREVIOUS)[None], win_rate[None], eta=ETA).sum()


def gpo(x):
    log_z = math.log(PREVIOUS @ np.exp(ETA * SCORE))
    loss = losses.gpo(x, log(PREVIOUS), torch.tensor(SCORE), eta=ETA, log_z=log_z)
    return (torch.tensor(PREVIOUS) * loss).sum()


def dno(x):
    win_rates = pairs_of(torch.tensor(q(PREVIOUS) + 0.5))
    return (UNEVEN * losses.dno(*pairs_of(x), *pairs_of(log(PREVIOUS)), *win_rates, eta=ETA)).sum()


def spin(x, data=OTHER, previous=PREVIOUS, eta=ETA):
    loss = losses.spin(*pairs_of(x), *pairs_of(log(previous)), eta=eta)
    return (times(data, previous) * loss).sum()


def sft(x):
    return (torch.tensor(OTHER) * losses.sft(x)).sum()


STATIONARY = {
    "sft": (sft, OTHER),
    "dpo": (dpo, rlhf(REWARD, BETA, MU)),
    "chi_po": (chi, chi_po(REWARD, BETA, MU)),
    "ipo": (ipo, npf.best_response(GAME, OTHER, BETA, MU)),
    "inpo binary": (inpo, GDA),
    "inpo soft": (lambda x: inpo(x, soft=True), GDA),
    "sppo with its log Z": (sppo, MWU),
    "sppo centred": (sppo_centred, MWU),
    "gpo with its log Z": (gpo, mirror_step([(1.0, PREVIOUS)], ETA * SCORE)),
    "dno": (dno, MWU),
    "spin": (spin, mirror_step([(1 - ETA, PREVIOUS), (ETA, OTHER)], 0.0)),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_stationary_at_the_exact_update_and_not_beside_it(name):
    objective, exact = STATIONARY[name]
    assert gradient(objective, exact) < 1e-10
    assert gradient(objective, normalise(np.log(exact) + 0.1 * np.arange(N))[1]) > 1e-4


@pytest.mark.parametrize("name", STATIONARY)
def test_trained_to_the_closed_form(name):
    objective, exact = STATIONARY[name]
    np.testing.assert_allclose(minimise(objective, MU), exact, atol=1e-6)


RULES = {
    "MWU": npf.MWU(eta=ETA),
    "GDA": npf.GDA(beta=BETA, eta=ETA),
    "Nash-MD": npf.NashMD(beta=BETA, eta=ETA),
    "OGDA": npf.OGDA(beta=BETA, eta=ETA),
    "ONPO": npf.ONPO(eta=ETA),
    "EGPO": npf.EGPO(beta=BETA, eta=ETA),
    "MMD": npf.MMD(beta=BETA, eta=ETA),
    "Nash-MP": npf.NashMP(beta=BETA, eta=ETA),
}


@pytest.mark.parametrize("name", RULES)
def test_the_regression_is_stationary_at_every_step_of_every_rule(name):
    rule, policies = RULES[name], {"reference": MU}
    for t in range(3):
        for step in rule.steps(t):
            start = {k: policies.get(k, PREVIOUS) for k in (*step.anchors, *step.payoffs)}
            anchors = {k: torch.tensor(np.log(start[k])) for k in step.anchors}
            payoffs = {k: torch.tensor(q(start[k])) for k in step.payoffs}
            exact = mirror_step(
                [(w, start[k]) for k, w in step.anchors.items()],
                sum((g * q(start[k]) for k, g in step.payoffs.items()), np.zeros(N)),
            )

            def of_pairs(x, step=step, anchors=anchors, payoffs=payoffs):
                differences = ({k: v[I] - v[J] for k, v in values.items()} for values in (anchors, payoffs))
                return (UNEVEN * losses.pairwise_regression(x[I] - x[J], step, *differences)).sum()

            def of_groups(x, step=step, anchors=anchors, payoffs=payoffs):
                rows = ({k: v[None] for k, v in values.items()} for values in (anchors, payoffs))
                return losses.group_regression(x[None], step, *rows).sum()

            for objective in (of_pairs, of_groups):
                assert gradient(objective, exact) < 1e-10
                assert gradient(objective, OTHER) > 1e-3
            policies[step.to] = exact
    trace = npf.solve(GAME, rule, steps=3, reference=MU, start=PREVIOUS)
    np.testing.assert_allclose(policies["current"], trace.policy, atol=1e-12)


def test_one_sampled_opponent_only_adds_noise_of_mean_zero():
    step = npf.MWU(eta=ETA).steps(0)[0]

    def objective(x):
        total = 0.0
        for k in range(N):  # the opponent's sample
            payoff = {"current": P[I, k] - P[J, k]}
            anchor = {"current": log(PREVIOUS)[I] - log(PREVIOUS)[J]}
            loss = losses.pairwise_regression(x[I] - x[J], step, anchor, payoff)
            total = total + PREVIOUS[k] * (UNEVEN * loss).sum()
        return total

    assert gradient(objective, MWU) < 1e-10


def test_binary_labels_are_wrong_for_pairs_that_are_not_the_opponents():
    """theory.md §8: the same loss, pairs drawn uniformly."""
    assert gradient(lambda x: inpo(x, UNIFORM), GDA) > 1e-2
    assert gradient(lambda x: inpo(x, UNIFORM, soft=True), GDA) > 1e-2


def test_binary_pairs_of_the_mixture_give_the_step_of_nash_md():
    exact = mirror_step([(1.0, MIXTURE)], ETA * q(MIXTURE))
    assert gradient(lambda x: inpo(x, times(MIXTURE, MIXTURE)), exact) < 1e-10
    assert gradient(inpo, exact) > 1e-3


def test_on_policy_ipo_rests_at_the_regularised_equilibrium():
    assert gradient(lambda x: ipo(x, opponent=NASH), NASH) < 1e-10
    assert gradient(lambda x: ipo(x, opponent=MU), MU) > 1e-2


def test_sppo_without_log_z_misses_by_half_the_variance():
    bias = ETA**2 * (PREVIOUS @ (q(PREVIOUS) ** 2)) / 2.0
    assert abs(LOG_Z_MWU - bias) < 0.1 * bias
    assert 1e-5 < gradient(lambda x: sppo(x, log_z=0.0), MWU) < 4.0 * bias


def test_spin_rests_only_at_the_data_and_reaches_it_in_one_round_with_eta_1():
    assert gradient(lambda x: spin(x, data=OTHER, previous=OTHER), OTHER) < 1e-10
    assert gradient(lambda x: spin(x, data=OTHER, previous=MU), MU) > 1e-3
    np.testing.assert_allclose(minimise(lambda x: spin(x, eta=1.0), PREVIOUS), OTHER, atol=1e-6)


@pytest.mark.parametrize("constraint", ["log", "probability"])
def test_c2_dpo_keeps_the_mass_of_the_pair(constraint):
    mu = np.array([0.2, 0.3, 0.5])
    pair = c2_dpo_pair(0.7, mu[:2], BETA, constraint=constraint)
    exact = np.append(pair, 1.0 - pair.sum())

    def objective(x):
        terms = (x[:1], x[1:2], log(mu)[:1], log(mu)[1:2])
        return losses.c2_dpo(*terms, beta=BETA, penalty=2.0, p_chosen=0.7, constraint=constraint).sum()

    def without(x):
        return losses.dpo(x[:1], x[1:2], log(mu)[:1], log(mu)[1:2], beta=BETA, p_chosen=0.7).sum()

    assert gradient(objective, exact) < 1e-10
    np.testing.assert_allclose(minimise(objective, mu), exact, atol=1e-6)
    assert abs(minimise(without, mu)[:2].sum() - 0.5) > 1e-2  # DPO moves mass out of the pair, or into it


# --- gradients ---


def values(*shape):
    return torch.tensor(RNG.normal(size=shape)).requires_grad_()


LABEL = torch.tensor([0.9, 0.3, 0.6], dtype=torch.float64)
STEP = npf.OGDA(beta=BETA, eta=ETA).steps(0)[0]
RANKING = torch.tensor([[2, 0, 1, -1], [0, 3, 1, 2], [1, 0, -1, -1]])
MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
STEPS = torch.tensor([[1, -100, 0, -1], [-100, -100, 1, -100], [0, 1, -1, -1]])


def regression(function):
    names = ([*STEP.anchors], [*STEP.payoffs])

    def call(x, *rest):
        anchors = dict(zip(names[0], rest, strict=False))
        payoffs = dict(zip(names[1], rest[len(names[0]) :], strict=True))
        return function(x, STEP, anchors, payoffs)

    return call


GRADIENTS = {
    "sft": (losses.sft, [(3,)]),
    "dpo": (
        lambda *x: losses.dpo(*x, beta=BETA, p_chosen=LABEL, margin=LABEL, label_smoothing=0.1),
        [(3,)] * 4,
    ),
    "robust_dpo": (lambda *x: losses.robust_dpo(*x, beta=BETA, flip_rate=0.2), [(3,)] * 4),
    "ipo": (lambda *x: losses.ipo(*x, beta=BETA, p_chosen=LABEL), [(3,)] * 4),
    "chi_po": (lambda *x: losses.chi_po(*x, beta=BETA, p_chosen=LABEL, r_max=50.0), [(3,)] * 4),
    "c2_dpo log": (lambda *x: losses.c2_dpo(*x, beta=BETA, penalty=0.3, p_chosen=LABEL), [(3,)] * 4),
    "c2_dpo probability": (
        lambda *x: losses.c2_dpo(*x, beta=BETA, penalty=0.3, constraint="probability"),
        [(3,)] * 4,
    ),
    "inpo": (lambda *x: losses.inpo(*x, beta=BETA, eta=ETA, p_chosen=LABEL), [(3,)] * 6),
    "sppo": (lambda *x: losses.sppo(*x, LABEL, eta=ETA, log_z=0.1), [(3,)] * 2),
    "sppo_pair": (lambda *x: losses.sppo_pair(*x, eta=ETA, p_chosen=LABEL), [(3,)] * 4),
    "sppo_centred": (lambda *x: losses.sppo_centred(*x, eta=ETA), [(2, 4)] * 3),
    "gpo": (lambda *x: losses.gpo(*x, eta=ETA), [(3,)] * 3),
    "dno": (lambda *x: losses.dno(*x, eta=ETA), [(3,)] * 6),
    "dno_prct": (lambda *x: losses.dno_prct(*x, eta=ETA), [(3,)] * 4),
    "spin": (lambda *x: losses.spin(*x, eta=ETA), [(3,)] * 4),
    "pairwise_regression": (regression(losses.pairwise_regression), [(3,)] * 5),
    "group_regression": (regression(losses.group_regression), [(3, 4)] * 5),
    "bradley_terry": (lambda *x: losses.bradley_terry(*x, p_chosen=LABEL, margin=LABEL), [(3,)] * 2),
    "k_wise": (lambda x: losses.k_wise(x, RANKING), [(3, 4)]),
    "plackett_luce": (lambda x: losses.plackett_luce(x, RANKING), [(3, 4)]),
    "outcome": (lambda x: losses.outcome(x, LABEL, MASK), [(3, 4)]),
    "process": (lambda x: losses.process(x, STEPS), [(3, 4, 3)]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradcheck(name):
    function, shapes = GRADIENTS[name]
    inputs = [values(*shape) for shape in shapes]
    assert torch.autograd.gradcheck(function, inputs)
    rows = shapes[0][0]
    assert function(*inputs).shape == (rows,)


def test_every_loss_is_in_the_table_of_gradients():
    assert {name.split()[0] for name in GRADIENTS} == set(losses.__all__)


# --- how they are related ---


def test_special_cases_agree():
    x = [values(4).detach() for _ in range(6)]
    label = torch.tensor([1.0, 0.2, 0.6, 0.5], dtype=torch.float64)

    def same(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    same(
        losses.ipo(*x[:4], beta=BETA, p_chosen=label),
        losses.inpo(*x, beta=BETA, eta=1 / BETA, p_chosen=label),
    )
    step = npf.GDA(beta=BETA, eta=ETA).steps(0)[0]
    anchors = {"current": x[4] - x[5], "reference": x[2] - x[3]}
    general = losses.pairwise_regression(x[0] - x[1], step, anchors, {"current": label - 0.5})
    same(general, losses.inpo(*x, beta=BETA, eta=ETA, p_chosen=label))
    same(
        losses.dpo(*x[:4], beta=BETA, label_smoothing=0.1),
        losses.dpo(*x[:4], beta=BETA, p_chosen=0.9),
    )
    same(losses.dpo(*x[:4], beta=BETA, margin=0.5), losses.bradley_terry(*bt(x), margin=0.5))
    same(losses.sppo_pair(*x[:4], eta=2.0), hard_sppo(*x[:4], eta=2.0))
    same(losses.dno_prct(*x[:4], eta=2.0), losses.dpo(*x[:4], beta=0.5))
    huge = [v / 1e-3 for v in x[:4]]
    clipped = losses.chi_po(*x[:4], beta=BETA, r_max=1e6)
    same(clipped, losses.chi_po(*x[:4], beta=BETA))
    assert losses.chi_po(*huge, beta=BETA, r_max=1.0).max() <= math.log1p(math.exp(2.0)) + 1e-12


def bt(x):
    return BETA * (x[0] - x[2]), BETA * (x[1] - x[3])


def hard_sppo(chosen, rejected, previous_chosen, previous_rejected, eta):
    return (chosen - previous_chosen - eta / 2) ** 2 + (rejected - previous_rejected + eta / 2) ** 2


def test_group_regression_is_the_mean_over_its_pairs():
    logps, previous, win_rate = (values(1, 4).detach() for _ in range(3))
    step = MirrorStep("current", {"current": 1.0}, {"current": ETA})
    group = losses.group_regression(logps, step, {"current": previous}, {"current": win_rate})
    total = 0.0
    for i, j in itertools.product(range(4), repeat=2):
        gap, anchor, payoff = (v[:, i] - v[:, j] for v in (logps, previous, win_rate))
        total += losses.pairwise_regression(gap, step, {"current": anchor}, {"current": payoff}) / 32.0
    torch.testing.assert_close(group, total)


def test_robust_dpo_is_dpo_in_the_mean_over_flips():
    c, r, mc, mr = (values(4).detach() for _ in range(4))
    flip = 0.2
    kept = losses.robust_dpo(c, r, mc, mr, beta=BETA, flip_rate=flip)
    flipped = losses.robust_dpo(r, c, mr, mc, beta=BETA, flip_rate=flip)
    torch.testing.assert_close((1 - flip) * kept + flip * flipped, losses.dpo(c, r, mc, mr, beta=BETA))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_log_probabilities_stay_finite(dtype):
    chosen = torch.tensor([-1e4, 0.0, -300.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([0.0, -1e4, -300.0], dtype=dtype, requires_grad=True)
    zero = torch.zeros(3, dtype=dtype) - 200.0
    for loss in (losses.dpo, losses.ipo, losses.chi_po, losses.c2_dpo):
        options = {"penalty": 1.0} if loss is losses.c2_dpo else {}
        value = loss(chosen, rejected, zero, zero, beta=BETA, **options)
        gradients = torch.autograd.grad(value.sum(), [chosen, rejected])
        assert all(t.isfinite().all() for t in (value, *gradients))


def test_the_logistic_loss_is_exact_where_softplus_is_not():
    z = torch.tensor([25.0, 35.0], dtype=torch.float64, requires_grad=True)
    loss = losses.bradley_terry(z, torch.zeros_like(z))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    expected = torch.tensor([-math.exp(-25.0), -math.exp(-35.0)], dtype=torch.float64)
    torch.testing.assert_close(loss, -expected, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=0.0)


# --- rewards ---


def test_k_wise_is_the_mean_over_ordered_pairs():
    rewards, ranking = values(1, 4).detach(), torch.tensor([[1, 0, 1, -1]])
    pairs = [(1, 0), (1, 2)]  # 0 and 2 are tied, 3 is padding
    expected = sum(losses.bradley_terry(rewards[:, i], rewards[:, j]) for i, j in pairs) / 2.0
    torch.testing.assert_close(losses.k_wise(rewards, ranking), expected)


def test_plackett_luce_is_a_distribution_over_rankings():
    rewards = values(1, 4).detach()
    rankings = torch.tensor(list(itertools.permutations(range(4))))
    likelihoods = (-losses.plackett_luce(rewards.expand(24, 4), rankings)).exp()
    assert likelihoods.sum().item() == pytest.approx(1.0, abs=1e-12)
    best_first = torch.tensor([[0, 1, 2, 3]])
    order = rewards[0].exp()
    chain = np.prod([order[k] / order[k:].sum() for k in range(4)])
    assert math.exp(-losses.plackett_luce(rewards, best_first).item()) == pytest.approx(float(chain))


def test_rankings_of_two_are_bradley_terry_and_padding_is_nothing():
    rewards = values(2, 2).detach()
    ranking = torch.tensor([[0, 1], [1, 0]])
    expected = torch.cat(
        [
            losses.bradley_terry(rewards[:1, 0], rewards[:1, 1]),
            losses.bradley_terry(rewards[1:, 1], rewards[1:, 0]),
        ]
    )
    padded = torch.cat([rewards, torch.full((2, 1), 99.0, dtype=torch.float64)], 1)
    padded_ranking = torch.cat([ranking, torch.full((2, 1), losses.rewards.NO_RANK)], 1)
    for loss in (losses.k_wise, losses.plackett_luce):
        torch.testing.assert_close(loss(rewards, ranking), expected)
        torch.testing.assert_close(loss(padded, padded_ranking), expected)


def test_outcome_and_process_are_cross_entropies_of_the_positions_that_count():
    logits = values(1, 3).detach()
    mask = torch.tensor([[0, 1, 1]])
    p = logits.sigmoid()
    expected = -(0.8 * p.log() + 0.2 * (1 - p).log())[0, 1:].mean()
    got = losses.outcome(logits, torch.tensor([0.8], dtype=torch.float64), mask)
    torch.testing.assert_close(got, expected[None])
    scores = values(1, 3, 3).detach()
    log_p = scores.log_softmax(-1)
    expected = -(log_p[0, 0, 0] + log_p[0, 2, 2]) / 2.0
    got = losses.process(scores, torch.tensor([[-1, -100, 1]]))
    torch.testing.assert_close(got, expected[None])


# --- bad input ---

X = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.dpo(X, X, X, X[:, None], beta=0.1), r"reference_rejected \(3, 1\)"),
        (lambda: losses.dpo(X, X, X, X, beta=0.1, p_chosen=X[:2]), r"p_chosen \(2,\)"),
        (lambda: losses.dpo(X, X, X, X, beta=0.0), "beta = 0.0"),
        (lambda: losses.dpo(X, X, X, X, beta=math.nan), "beta = nan"),
        (lambda: losses.dpo(X, X, X, X, beta=0.1, label_smoothing=0.5), "label_smoothing = 0.5"),
        (lambda: losses.robust_dpo(X, X, X, X, beta=0.1, flip_rate=0.5), "flip_rate = 0.5"),
        (lambda: losses.chi_po(X, X, X, X[:1], beta=0.1), "reference_rejected"),
        (lambda: losses.chi_po(X, X, X, X, beta=0.1, r_max=-1.0), "r_max = -1"),
        (lambda: losses.c2_dpo(X, X, X, X, beta=0.1, penalty=0.0), "penalty = 0"),
        (lambda: losses.c2_dpo(X, X, X, X, beta=0.1, penalty=1.0, constraint="kl"), "constraint = 'kl'"),
        (lambda: losses.inpo(X, X, X, X, X, X, beta=2.0, eta=1.0), r"eta \* beta = 2"),
        (lambda: losses.inpo(X, X, X, X, X, X, beta=-1.0, eta=1.0), r"eta \* beta = -1"),
        (lambda: losses.inpo(X, X, X, X, X, X[:1], beta=0.1, eta=1.0), "previous_rejected"),
        (lambda: losses.sppo(X, X, X, eta=-1.0), "eta = -1"),
        (lambda: losses.sppo(X, X, X[:1], eta=1.0), "payoff"),
        (lambda: losses.group_regression(X, STEP, {}, {}), r"\(B, K\)"),
        (lambda: losses.group_regression(X[:, None], STEP, {}, {}), "K ≥ 2"),
        (lambda: losses.pairwise_regression(X, STEP, {}, {}), r"anchors for \[\] were given"),
        (
            lambda: losses.pairwise_regression(X, MirrorStep("current", {"base": 1.0}), {"base": X[:1]}, {}),
            "base",
        ),
        (lambda: losses.bradley_terry(X, X[:2]), "rejected"),
        (lambda: losses.k_wise(X[None], torch.tensor([[0, 0, -1]])), "row 0"),
        (lambda: losses.k_wise(X[None], X[None]), "integers"),
        (lambda: losses.plackett_luce(X[None], torch.tensor([[0, 0, 1]])), "ties"),
        (lambda: losses.plackett_luce(X[None], torch.tensor([[0, -1, -1]])), "row 0"),
        (lambda: losses.outcome(X[None], torch.ones(1), torch.zeros(1, 3)), "completion_mask, row 0"),
        (lambda: losses.process(torch.zeros(1, 3, 2), torch.zeros(1, 3)), r"\(B, T, 3\)"),
        (lambda: losses.process(torch.zeros(1, 1, 3), torch.tensor([[2]])), "label 2"),
        (lambda: losses.process(torch.zeros(1, 1, 3), torch.tensor([[-100]])), "labels, row 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
