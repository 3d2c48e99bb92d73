"""Policy gradients against enumeration: every sequence of a small table, every group that can be drawn."""

import itertools

import numpy as np
import pytest
import torch

from nashpref.llm.losses.policy_gradient import (
    AdaptiveKL,
    baseline_advantages,
    clipped_surrogate,
    clipped_value_loss,
    dr_grpo_advantages,
    gae,
    grpo_advantages,
    kimi,
    kl_estimate,
    over_tokens,
    rloo_advantages,
    token_rewards,
)

V = 3
FIRST, SECOND = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T  # all sequences of two tokens
MASK = torch.ones(V * V, 2)


class Table(torch.nn.Module):
    """`π(y_1) π(y_2|y_1)` over sequences of two tokens."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(V + 1, V, generator=generator, dtype=torch.float64)
        self.logits = torch.nn.Parameter(draw)

    def forward(self):
        """log π of each token of every sequence, `(9, 2)`."""
        log_p = torch.log_softmax(self.logits, dim=1)
        return torch.stack([log_p[0, FIRST], log_p[1 + FIRST, SECOND]], dim=1)


POLICY, REFERENCE = Table(0), Table(1)
MU = REFERENCE().detach()
REWARDS = torch.randn(V * V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def probabilities():
    return POLICY().detach().sum(dim=1).exp()


def gradient(value):
    return torch.autograd.grad(value, POLICY.logits)[0]


def expected_reward():
    return POLICY().sum(dim=1).exp() @ REWARDS


def divergence():
    logps = POLICY().sum(dim=1)
    return logps.exp() @ (logps - MU.sum(dim=1))


def reverse_divergence():
    mu = MU.sum(dim=1)
    return mu.exp() @ (mu - POLICY().sum(dim=1))


def by_token(exchanged):
    """`Σ_t E_{y_<t} KL` of the next token's distributions, the beginnings held fixed."""
    log_p, log_m = (torch.log_softmax(each, dim=1) for each in (POLICY.logits, REFERENCE.logits.detach()))
    reached = torch.cat([torch.ones(1, dtype=torch.float64), log_p[0].detach().exp()])
    each = log_m.exp() * (log_m - log_p) if exchanged else log_p.exp() * (log_p - log_m)
    return reached @ each.sum(dim=1)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
    assert b.abs().max() > 1e-2  # or nothing has been compared


# --- the KL's estimators ---


def test_values_of_the_estimators():
    p, whole = probabilities(), [POLICY().detach().sum(dim=1), MU.sum(dim=1)]
    for name in ("k1", "k3"):
        close(p @ kl_estimate(*whole, name), divergence().detach())
        tokens = kl_estimate(POLICY().detach(), MU, name)
        close(p @ over_tokens(tokens, MASK), divergence().detach())
    d = whole[1] - whole[0]
    close(p @ kl_estimate(*whole, "k2"), p @ d.square() / 2)
    assert (kl_estimate(*whole, "k3") >= 0).all()
    assert (kl_estimate(*whole, "k1") < 0).any()
    near = whole[0] + 1e-3 * d  # k2's bias is of third order, the KL of second
    for scale in (1e-2, 1e-3):
        near = torch.log_softmax(whole[0] + scale * d, dim=0)
        exact, k2 = p @ (whole[0] - near), p @ kl_estimate(whole[0], near, "k2")
        assert abs(k2 / exact - 1) < 5 * scale


def test_gradients_of_the_estimators_on_whole_responses():
    p, mu = probabilities(), MU.sum(dim=1)
    of = {name: gradient(p @ kl_estimate(POLICY().sum(dim=1), mu, name)) for name in ("k1", "k2", "k3")}
    assert of["k1"].abs().max() < 1e-15
    close(of["k2"], gradient(divergence()))
    close(of["k3"], gradient(reverse_divergence()))
    assert (of["k2"] - of["k3"]).abs().max() > 0.1


def test_gradients_of_the_estimators_on_tokens():
    p = probabilities()
    of = {
        name: gradient(p @ over_tokens(kl_estimate(POLICY(), MU, name), MASK)) for name in ("k1", "k2", "k3")
    }
    assert of["k1"].abs().max() < 1e-15
    close(of["k2"], gradient(by_token(exchanged=False)))
    close(of["k3"], gradient(by_token(exchanged=True)))
    assert (of["k2"] - gradient(divergence())).abs().max() > 1e-2  # what comes after is left out


def test_k1_in_the_reward_is_the_gradient_of_the_kl():
    beta, p, logps = 0.3, probabilities(), POLICY()
    log_ratio = logps.detach() - MU
    whole = baseline_advantages((REWARDS - beta * log_ratio.sum(dim=1))[None], 0.7)[0]
    expected = gradient(expected_reward() - beta * divergence())
    close(gradient(p @ (whole * POLICY().sum(dim=1))), expected)
    # Token by token, whatever the value is: λ = 1.
    values = torch.randn(V + 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = torch.stack([values[0].expand(V * V), values[1 + FIRST]], dim=1)
    each = token_rewards(REWARDS, log_ratio, MASK, beta=beta)
    advantages = gae(each, values, MASK, gamma=1.0, lam=1.0)
    close(gradient(p @ over_tokens(advantages * logps, MASK)), expected)
    biased = gae(each, values, MASK, gamma=1.0, lam=0.5)
    assert (gradient(p @ over_tokens(biased * POLICY(), MASK)) - expected).abs().max() > 5e-3


def test_unknown_estimator():
    with pytest.raises(ValueError, match=r"'k4': choose 'k1', 'k2' or 'k3'"):
        kl_estimate(MU, MU, "k4")


# --- advantages ---


def mean_gradient(advantages, K):
    """Of `E Σ_i A_i log π(y_i) / K` over all groups of K responses."""
    groups = torch.tensor(list(itertools.product(range(V * V), repeat=K)))
    p = probabilities()[groups].prod(dim=1)
    logps = POLICY().sum(dim=1)[groups]
    return gradient(p @ (advantages(REWARDS[groups]) * logps).mean(dim=1))


@pytest.mark.parametrize("K", [2, 3])
def test_groups(K):
    exact = gradient(expected_reward())
    close(mean_gradient(rloo_advantages, K), exact)
    close(mean_gradient(dr_grpo_advantages, K), (1 - 1 / K) * exact)
    close(mean_gradient(lambda r: baseline_advantages(r, 0.4), K), exact)
    greedy = REWARDS[probabilities().argmax()]
    close(mean_gradient(lambda r: baseline_advantages(r, greedy.expand(len(r))), K), exact)
    found = mean_gradient(grpo_advantages, K)  # another direction, and not only another length
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0)
    assert 0.5 < cosine < 0.999


def test_a_baseline_lowers_the_variance():
    p, logps = probabilities(), POLICY().detach().sum(dim=1)

    def noise(shift):
        per_response = [
            gradient((REWARDS[i] + shift) * POLICY().sum(dim=1)[i]).square().sum() for i in range(V * V)
        ]
        return p @ torch.stack(per_response)

    assert noise(-(logps.exp() @ REWARDS)) < noise(5.0)


def test_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [4.0, 4.0, 4.0]])
    close(rloo_advantages(rewards), torch.tensor([[0.0, -1.5, 1.5], [0.0, 0.0, 0.0]]))
    close(dr_grpo_advantages(rewards), torch.tensor([[0.0, -1.0, 1.0], [0.0, 0.0, 0.0]]))
    close(grpo_advantages(rewards, epsilon=1.0), torch.tensor([[0.0, -0.5, 0.5], [0.0, 0.0, 0.0]]))
    close(
        baseline_advantages(rewards, torch.tensor([1.0, 3.0])),
        torch.tensor([[0.0, -1.0, 1.0], [1.0, 1.0, 1.0]]),
    )
    for function in (rloo_advantages, dr_grpo_advantages, grpo_advantages):
        with pytest.raises(ValueError, match=r"\(2, 1\): \(B, K\) with K ≥ 2"):
            function(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one value for each"):
        baseline_advantages(rewards, torch.zeros(3))
    with pytest.raises(ValueError, match="epsilon"):
        grpo_advantages(rewards, epsilon=0.0)


def rows(seed=0):
    """Rewards and values of responses that begin and end anywhere in the row."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0]]
    )
    return rewards * mask, values, mask


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (0.9, 1.0), (0.7, 0.0), (0.0, 0.5)])
def test_gae_is_the_double_sum(gamma, lam):
    rewards, values, mask = rows()
    expected = torch.zeros_like(values)
    for n, row in enumerate(mask):
        columns = row.nonzero().flatten().tolist()
        for t in columns:
            for later in columns:
                if later >= t:
                    after = values[n, later + 1] if later + 1 in columns else 0.0
                    delta = rewards[n, later] + gamma * after - values[n, later]
                    expected[n, t] += (gamma * lam) ** (later - t) * delta
    close(gae(rewards, values, mask, gamma=gamma, lam=lam), expected)
    if lam == 1.0:  # Monte Carlo
        returns = torch.zeros_like(values)
        for t in range(7):
            powers = gamma ** torch.arange(7 - t, dtype=torch.float64)
            returns[:, t] = (rewards[:, t:] * powers).sum(dim=1)
        close(gae(rewards, values, mask, gamma=gamma, lam=lam), (returns - values) * mask)


def test_rewards_by_token():
    _, log_ratio, mask = rows()
    found = token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), log_ratio, mask, beta=0.5)
    close(found.sum(dim=1), torch.arange(1.0, 5.0) - 0.5 * (log_ratio * mask).sum(dim=1))
    for n, last in enumerate([6, 4, 6, 1]):
        close(found[n, last] + 0.5 * log_ratio[n, last], torch.tensor(n + 1.0, dtype=torch.float64))
    assert (found[mask == 0] == 0).all()
    with pytest.raises(ValueError, match=r"gamma = 1\.5"):
        gae(found, log_ratio, mask, gamma=1.5)


# --- losses ---


def test_the_surrogate():
    old = torch.zeros(6, dtype=torch.float64)
    ratio = torch.tensor([0.5, 0.9, 1.0, 1.1, 1.5, 1.0], dtype=torch.float64)
    for advantage, inside in ((2.0, [1, 1, 1, 1, 0, 1]), (-2.0, [0, 1, 1, 1, 1, 1])):
        logps = ratio.log().requires_grad_()
        loss = clipped_surrogate(logps, old, torch.full_like(old, advantage), clip=0.2)
        (found,) = torch.autograd.grad(loss.sum(), logps)
        close(found, -advantage * ratio * torch.tensor(inside))  # −A ∇log π where the ratio is 1
        clipped = ratio.clamp(0.8, 1.2)
        expected = -torch.minimum(ratio * advantage, clipped * advantage)
        close(loss.detach(), expected)
    with pytest.raises(ValueError, match="clip = 0"):
        clipped_surrogate(old, old, old, clip=0.0)
    with pytest.raises(ValueError, match=r"advantages \(5,\)"):
        clipped_surrogate(old, old, old[:5], clip=0.2)


def test_the_surrogate_followed_further_up_than_down():
    """The lecture's clip, 0.8 to 2: what is praised may double, what is blamed loses a fifth."""
    old = torch.zeros(5, dtype=torch.float64)
    ratio = torch.tensor([0.7, 0.9, 1.5, 1.9, 2.1], dtype=torch.float64)
    for advantage, inside in ((3.0, [1, 1, 1, 1, 0]), (-3.0, [0, 1, 1, 1, 1])):
        logps = ratio.log().requires_grad_()
        loss = clipped_surrogate(logps, old, torch.full_like(old, advantage), clip=(0.2, 1.0))
        (found,) = torch.autograd.grad(loss.sum(), logps)
        close(found, -advantage * ratio * torch.tensor(inside))
        expected = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 2.0) * advantage)
        close(loss.detach(), expected)
        same = clipped_surrogate(ratio.log(), old, torch.full_like(old, advantage), clip=(0.3, 0.3))
        close(same, clipped_surrogate(ratio.log(), old, torch.full_like(old, advantage), clip=0.3))
    for clip, message in (((0.0, 1.0), "clip_low = 0"), ((0.2, -1.0), "clip_high = -1"), ((0.2,), "or two")):
        with pytest.raises(ValueError, match=message):
            clipped_surrogate(old, old, old, clip=clip)


def test_the_value_loss():
    values = torch.tensor([0.0, 0.1, 0.5, -0.5], requires_grad=True)
    old, returns = torch.zeros(4), torch.ones(4)
    loss = clipped_value_loss(values, old, returns, clip=0.2)
    # Moved beyond the clip towards the return: the gradient is zero; away from it: it is not.
    close(loss.detach(), 0.5 * torch.tensor([1.0, 0.81, 0.64, 2.25]), atol=1e-6)
    close(torch.autograd.grad(loss.sum(), values)[0], torch.tensor([-1.0, -0.9, 0.0, -1.5]), atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_the_regression_has_its_minimum_at_the_mirror_step(eta):
    """Whatever the responses are drawn from; with the mean reward in place of log Z nearly so."""
    old = MU.sum(dim=1)
    log_z = torch.logsumexp(old + eta * REWARDS, dim=0) / eta
    step = old + eta * (REWARDS - log_z)
    close(step.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    loss = kimi(step[None], old[None], REWARDS[None], eta=eta, log_z=log_z[None])
    assert loss.max() < 1e-24
    assert kimi(step[None] + 0.1, old[None], REWARDS[None], eta=eta, log_z=log_z[None]).min() > 1e-4
    # At the old policy its gradient is −A log π's, A the reward less the mean of the group.
    logps = old[None].clone().requires_grad_()
    (found,) = torch.autograd.grad(kimi(logps, old[None], REWARDS[None], eta=eta).sum(), logps)
    close(found[0], -(REWARDS - REWARDS.mean()))


def test_sums_over_tokens():
    _, values, mask = rows()
    lengths = torch.tensor([7, 3, 1, 2])
    sums = torch.stack([values[n][mask[n] == 1].sum() for n in range(4)])
    close(over_tokens(values, mask), sums)
    close(over_tokens(values, mask, mask.sum(dim=1)), sums / lengths)
    close(over_tokens(values, mask, 16.0), sums / 16)


def test_the_adaptive_weight_finds_its_target():
    adapt = AdaptiveKL(start=0.1, target=2.0)
    np.testing.assert_allclose(adapt(0.1, 2.2), 0.1 * 1.01)
    np.testing.assert_allclose(adapt(0.1, 9.0), 0.1 * 1.02)  # never by more than κ/5
    np.testing.assert_allclose(adapt(0.1, 0.0), 0.1 * 0.98)
    beta = adapt.start
    for _ in range(2000):
        beta = adapt(beta, 1.0 / beta)  # a policy whose KL is 1/β
    np.testing.assert_allclose(beta, 0.5, rtol=1e-6)
    for options in (
        {"start": 0.0, "target": 1.0},
        {"start": 1.0, "target": -1.0},
        {"start": 1, "target": 1, "rate": 2},
    ):
        with pytest.raises(ValueError, match="must"):
            AdaptiveKL(**options)
