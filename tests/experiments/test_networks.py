"""Language models in experiments: next to exact arithmetic, and what the experiments say of them."""

import dataclasses
import math

import numpy as np
import pytest

import nashpref as npf

pytest.importorskip("torch")

import torch

from nashpref.experiments import network_methods, network_opponents, network_rules
from nashpref.experiments.networks import aligned, fine_tuned, one_thread, play, reinforced
from nashpref.llm.algorithms import GRPO
from nashpref.llm.environments import bradley_terry, rock_paper_scissors_of_styles

BETA = 0.1


@pytest.fixture(scope="module")
def control():
    """Two prompts of nine responses, and a model that speaks like the demonstrator."""
    task = bradley_terry(2, length=2, strength=0.6)
    with one_thread():
        model = fine_tuned(task, width=32, steps=80, seed=0)
    return task, model


def total_variation(p, q):
    return float(0.5 * np.abs(p - q).sum(axis=1).max())


def valid(policy):
    return policy[:, :-1] / policy[:, :-1].sum(axis=1, keepdims=True)


def test_a_fine_tuned_model_speaks_like_the_demonstrator(control):
    task, model = control
    policy = task.policy(model)
    assert total_variation(valid(policy), task.reference) < 0.1
    assert policy[:, -1].max() < 0.1


def test_playing_leaves_the_model_as_it_was_and_counts_rounds(control):
    task, model = control
    before = [weight.clone() for weight in model.parameters()]
    reference = task.policy(model)
    rule = npf.EGPO(beta=BETA, eta=1.5)  # fits twice a round
    options = {"updates": 2, "reuse": 2, "samples": 64, "batch_responses": 16, "learning_rate": 3e-3}
    with one_thread():
        trained, measured = play(model, rule, task, reference, every=5, rounds=12, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert measured["round"].tolist() == [0, 5, 10, 12]
    first = task.gap(reference, BETA, reference).mean()
    last = task.gap(task.policy(trained), BETA, reference).mean()
    np.testing.assert_allclose(measured["gap"][[0, -1]], [first, last], rtol=1e-6)
    assert last < first / 2


def test_rlhf_and_dpo_move_towards_their_closed_form(control):
    task, model = control
    start, beta = valid(task.policy(model)), 4.0 * BETA
    rewards = np.stack(
        [np.log((P := task.matrix(prompt, task.responses)) / (1.0 - P))[:, 0] for prompt in task.prompts]
    )
    optimum = np.stack([npf.closed_forms.rlhf(r, beta, mu) for r, mu in zip(rewards, start, strict=True)])
    with one_thread():
        pairs = task.pairs(np.random.default_rng(0), 500, policy=model, soft=True)
        dpo = aligned(model, pairs, beta, task.tokenizer, steps=40, learning_rate=1e-3, seed=0)
        rlhf = reinforced(
            model, GRPO(beta=beta, kl="reward"), rewards, task, rounds=60, samples=32, learning_rate=2e-3
        )
    far = total_variation(start, optimum)
    assert total_variation(valid(task.policy(dpo)), optimum) < far / 2
    assert total_variation(valid(task.policy(rlhf)), optimum) < far / 2


def test_the_exact_curves_are_those_of_solve_and_start_where_the_model_does():
    settings = dataclasses.replace(network_rules.SIZES["quick"], rounds=2, every=1, sft_steps=10)
    table = network_rules.compare(settings, {"GDA": npf.GDA(beta=BETA, eta=1.0), "MWU": npf.MWU(eta=1.0)})
    assert table["method"].tolist() == ["GDA"] * 3 + ["MWU"] * 3
    assert table["round"].tolist() == [0, 1, 2] * 2
    assert table["beta"].tolist() == [BETA] * 3 + [0.0] * 3
    begins = table["round"] == 0
    np.testing.assert_allclose(table["gap"][begins], table["exact"][begins], rtol=1e-6)
    assert (table["gap"][~begins] != table["exact"][~begins]).all()
    assert table["exact"][1] < table["exact"][0]


def test_every_rule_is_there_that_has_one_geometry():
    shown = {type(rule) for rule in network_rules.rules(BETA).values()}
    named = {rule for rule in vars(npf.rules).values() if isinstance(rule, type) and hasattr(rule, "steps")}
    multi_turn = {npf.OMPO, npf.MTPO, npf.MTPOTau, npf.MPO}
    assert shown == {rule for rule in named if rule.__module__ == "nashpref.rules"} - multi_turn


def test_wrong_opponents_are_what_they_are_said_to_be():
    task = rock_paper_scissors_of_styles(3, length=3)
    game, mu = task.game(invalid=False), task.reference

    def solved(rule, steps=20):
        return npf.solve(game, rule, steps, reference=mu).policy

    right = npf.NashMD(beta=BETA, eta=1.0)
    pure = network_opponents.ImpureMixture(BETA, 1.0, 0.0)
    np.testing.assert_allclose(solved(pure), solved(right), atol=1e-12)
    adapters = network_opponents.ReferenceIsPolicy(BETA, 1.0)
    np.testing.assert_allclose(solved(adapters), solved(npf.MWU(eta=1.0)), atol=1e-12)
    gap = {
        share: npf.duality_gap(
            game, solved(network_opponents.ImpureMixture(BETA, 1.0, share), 200), BETA, mu
        ).mean()
        for share in (0.0, 0.5)
    }
    assert gap[0.5] > 10 * gap[0.0]
    assert npf.duality_gap(game, solved(adapters, 200), BETA, mu).mean() > 0.3


def test_on_the_control_the_optima_of_rlhf_and_of_the_game_meet_and_on_the_cycle_they_do_not():
    """In exact arithmetic, at the default settings: what the figure's marks say."""
    s = network_methods.Settings()
    shape = {"prompts": s.prompts, "length": s.length}
    ratio = {}
    for name, task in (
        ("cycle", rock_paper_scissors_of_styles(**shape)),
        ("control", bradley_terry(**shape, strength=s.strength)),
    ):
        game, mu = task.game(invalid=False), task.reference
        optimum = network_methods.optimum(task, mu, network_methods.SLOPE * s.beta)
        gaps = [npf.duality_gap(game, policy, s.beta, mu).mean() for policy in (optimum, mu)]
        ratio[name] = gaps[0] / gaps[1]
    assert ratio["cycle"] > 0.3
    assert ratio["control"] < 1 / 300


def test_the_tables_of_the_methods_say_one_thing_once():
    settings = network_methods.EXPERIMENT.sizes["quick"]
    few = {"sft_steps": 5, "pairs": 50, "dpo_steps": 2, "rlhf_rounds": 2, "rounds": 1, "updates": 1}
    tables = network_methods.run(dataclasses.replace(settings, **few))
    gaps, policies = tables["gaps"], tables["policies"]
    methods = ["start", "DPO", "PPO", "GRPO", "Nash-MD", "EGPO"]
    assert gaps["method"].tolist() == methods * 2
    starts = gaps["method"] == "start"
    assert gaps["gap"][starts].tolist() == gaps["exact"][starts].tolist()
    assert ((gaps["leak"] > 0.0) & (gaps["leak"] < 1.0)).all()
    assert list(dict.fromkeys(policies["method"])) == ["equilibrium", *methods]
    shown = policies["method"] == "equilibrium"
    assert (np.diff(policies["probability"][shown]) <= 0.0).all()
    assert math.isclose(policies["probability"][shown].sum(), 1.0, abs_tol=1e-9)  # nine of nine
