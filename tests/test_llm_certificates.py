"""Win-rates and exploitability of neural policies, against enumeration."""

import functools
import itertools
import json

import numpy as np
import pytest
import torch

import nashpref as npf
from nashpref.llm import opponents
from nashpref.llm.certificates import exploitability, lower_bound
from nashpref.llm.encoding import Encoder, collate
from nashpref.llm.environments import rock_paper_scissors_of_styles
from nashpref.llm.inputs import Lora
from nashpref.llm.intervals import proportion
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.objectives import Demonstrations
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.preferences import from_reward

TASK = rock_paper_scissors_of_styles(2, 3, 2)
ROWS = list(TASK.prompts) * 96


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fine_tuned(policy):
    """A model that has learned to answer as `policy`, `(B, n)`, does: weighted cross-entropy."""
    model = tiny_causal_lm(TASK.tokenizer, layers=1, width=32, context=16, kind="gpt2")
    encoder = Encoder(TASK.tokenizer)
    rows = [encoder.encode(x, y) for x in TASK.prompts for y in TASK.responses]
    batch, weight = collate(rows, encoder.pad_id), torch.tensor(policy.ravel(), dtype=torch.float32)
    objective, optimizer = Demonstrations(model), torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(300):
        (objective(batch)["loss"] * weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@functools.cache
def state(name):
    """Weights of the skewed policy and of the equilibrium's."""
    game = TASK.game(invalid=False)
    policy = TASK.reference if name == "skewed" else npf.equilibrium(game).policy
    return fine_tuned(policy).state_dict()


def model_of(name):
    model = tiny_causal_lm(TASK.tokenizer, layers=1, width=32, context=16, kind="gpt2")
    model.load_state_dict(state(name))
    return model


def config(folder, **options):
    options = {"rounds": 8, "updates": 8, "samples": 32, "batch_size": 2, "learning_rate": 5e-3, **options}
    options = {"max_new_tokens": TASK.max_new_tokens, "schedule": "constant", **options}
    return NashConfig(output=str(folder), **options)


def certified(model, folder, **options):
    return exploitability(
        model, TASK, config(folder, **options), TASK.prompts, TASK.tokenizer, eval_dataset=ROWS
    )


def exact(model):
    return float(TASK.gap(model).mean()) / 2.0


def weights_of(model):
    return [weight.detach().clone() for weight in model.parameters()]


# --- a bound that needs no normal distribution ---


@pytest.mark.parametrize("n", [4, 16, 200])
def test_the_bound_is_seldom_above_the_mean(n):
    """Of outcomes of unequal distributions, where the normal approximation with few of them fails."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0.2, 4.0, n)
    mean = float((a / (a + 1.0)).mean())
    drawn = [rng.beta(a, 1.0) for _ in range(200)]
    assert np.mean([lower_bound(x) > mean for x in drawn]) <= 0.025
    assert np.mean([lower_bound(x, 0.5) > mean for x in drawn]) <= 0.5
    distance = np.mean([x.mean() - lower_bound(x) for x in drawn])
    assert distance < 1.3 / np.sqrt(n)


def test_the_bound_adapts_to_the_variance():
    rng = np.random.default_rng(0)
    for spread in (0.4, 0.1):
        x = 0.5 + spread * rng.uniform(-1.0, 1.0, 4000)
        normal = proportion(x, range(len(x))).low
        assert 1.5 < (x.mean() - lower_bound(x)) / (x.mean() - normal) < 2.0


def test_the_bound_at_the_ends():
    assert lower_bound([0.0, 0.0]) == 0.0
    assert 0.98 < lower_bound(np.ones(1000)) < 1.0
    for values in ([], [0.5, 1.1], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="all in"):
            lower_bound(values)


# --- exploitability ---


def test_most_of_the_exploitability_is_found_and_no_more(tmp_path):
    for seed in range(2):
        model = model_of("skewed")
        found, truth = certified(model, tmp_path, seed=seed), exact(model)
        assert 0.2 < truth < 0.5
        assert 0.6 * truth < found.low < found.estimate < truth + 0.03
        assert found.low <= truth
        assert (found.steps, found.rows) == (64, len(ROWS))
        assert found.metrics()["exploitability_lower_bound"] == found.low
    assert not list(tmp_path.iterdir())


def test_at_the_equilibrium_nothing_is_found(tmp_path):
    model = model_of("equilibrium")
    assert exact(model) < 0.02
    for seed in range(2):
        found = certified(model, tmp_path, seed=seed)
        assert found.low == 0.0
        assert abs(found.estimate) < 0.05


@pytest.mark.parametrize("make", [lambda m: m, Lora(rank=2).adapt], ids=["all weights", "lora"])
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_model_is_left_as_it_is(make, mode, tmp_path):
    torch.manual_seed(0)
    model = make(tiny_causal_lm(TASK.tokenizer, layers=1, width=16)).train(mode)
    before, places = weights_of(model), [weight.data_ptr() for weight in model.parameters()]
    certified(model, tmp_path, rounds=1, updates=2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert places == [weight.data_ptr() for weight in model.parameters()]
    assert all(weight.grad is None for weight in model.parameters())
    assert all(module.training == mode for module in model.modules())


def test_it_can_be_logged_by_a_trainer_whose_run_stays_the_same(tmp_path):
    def run(folder, **options):
        model = model_of("skewed")
        args = config(folder, rounds=2, updates=2, eval_every=2)
        rule, prompts = npf.GDA(beta=0.1, eta=0.5), list(TASK.prompts)
        return NashTrainer(model, rule, TASK, args, prompts, TASK.tokenizer, **options)

    plain, budget = run(tmp_path / "plain"), config(tmp_path, rounds=2, updates=8)

    def metrics(model):
        found = exploitability(model, TASK, budget, TASK.prompts, TASK.tokenizer, eval_dataset=ROWS)
        return found.metrics() | TASK.metrics()(model)

    certified = run(tmp_path / "certified", compute_metrics=metrics)
    plain.train(progress=False)
    log = [each for each in certified.train(progress=False) if "eval/gap" in each]
    assert len(log) == 2
    for each in log:
        assert 0.0 < 2.0 * each["eval/exploitability_lower_bound"] <= each["eval/gap"]
    for a, b in zip(plain.model.parameters(), certified.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_exploitability_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"args\.lora"):
        certified(model_of("skewed"), tmp_path, lora=Lora(rank=2))
    with pytest.raises(ValueError, match="eta = 0"):
        exploitability(model_of("skewed"), TASK, config(tmp_path), TASK.prompts, TASK.tokenizer, eta=0.0)


# --- the exact gap, where there is one ---


def test_exact_gaps_as_metrics():
    model = model_of("skewed")
    metrics = TASK.metrics(0.05, model)
    mu = TASK.policy(model)
    assert metrics(model)["gap"] == TASK.gap(mu, 0.05, mu).mean()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 0.5  # the reference is what the model was
    pi = TASK.policy(model)
    found = metrics(model)
    assert found == {
        "gap": TASK.gap(pi, 0.05, mu).mean(),
        "gap/unregularised": TASK.gap(pi).mean(),
        "leak": pi[:, -1].mean(),
    }
    assert TASK.metrics()(model) == {"gap": found["gap/unregularised"], "leak": found["leak"]}
    with pytest.raises(ValueError, match=r"beta = 0\.05 needs reference"):
        TASK.metrics(0.05)


# --- win-rates while training ---


def count_a(prompts, responses):
    return [4.0 * response.split().count("a") for response in responses]


def trainer(folder, rule=None, preference=TASK, **options):
    keys = ("eval_dataset", "pool", "compute_metrics")
    others = {"eval_dataset": TASK.prompts, **{key: options.pop(key) for key in keys if key in options}}
    args = config(folder, **options)
    rule = rule or npf.GDA(beta=0.1, eta=0.5)
    return NashTrainer(model_of("skewed"), rule, preference, args, TASK.prompts, TASK.tokenizer, **others)


def test_win_rates_are_those_of_the_policies(tmp_path):
    """With many samples, `μᵀ P μ'` by enumeration; the opponents are not mistaken for one another."""
    other = model_of("equilibrium")
    other.save_pretrained(tmp_path / "other")
    TASK.tokenizer.save_pretrained(tmp_path / "other")
    pool = {
        "equilibrium": other,
        "saved": str(tmp_path / "other"),
        "half-trained": fine_tuned(np.ones((2, 9)) / 9),
    }
    rule, options = npf.GDA(beta=0.01, eta=8.0), {"rounds": 2, "updates": 8, "eval_every": 8, "reuse": 8}
    run = trainer(tmp_path / "run", rule, samples=300, pool=pool, **options)
    snapshots = []
    run.compute_metrics = lambda model: snapshots.append(TASK.policy(model)) or {}
    start = TASK.policy(run.model)
    log = [each for each in run.train(progress=False) if "eval/win_rate/reference" in each]
    assert len(log) == len(snapshots) == 2
    P = TASK.game().payoff
    policies = {
        "reference": start,
        "previous": snapshots[0],
        "equilibrium": TASK.policy(other),
        "saved": TASK.policy(other),
        "half-trained": TASK.policy(pool["half-trained"]),
    }
    assert "eval/win_rate/previous" not in log[0]
    for name, opponent in policies.items():
        exact = 0.5 + (snapshots[1] * P(opponent)).sum(axis=1).mean()
        value, low, high = (log[1][f"eval/win_rate/{name}{end}"] for end in ("", "/low", "/high"))
        assert abs(value - exact) < 0.03
        assert low <= value <= high
    values = [log[1][f"eval/win_rate/{name}"] for name in ("reference", "previous", "equilibrium")]
    assert np.ptp(values) > 0.06


def test_the_interval_is_that_of_prompts(tmp_path):
    """Rows with the same prompt are one group, and a single prompt has no interval."""
    preference = from_reward(count_a)
    run = trainer(tmp_path, preference=preference, eval_dataset=list(TASK.prompts) * 8)
    found = run.evaluate()
    ours = run.opponents.latest[1]
    theirs = run.opponents._fixed["reference"]
    assert ours != theirs  # of the same policy, but not the same draws
    w = [
        float(np.mean([preference([x], [a], [b]).item() for a in y for b in z]))
        for x, y, z in zip(list(TASK.prompts) * 8, ours, theirs, strict=True)
    ]
    expected = proportion(w, [0, 1] * 8)
    got = [found[f"win_rate/reference{end}"] for end in ("", "/low", "/high")]
    np.testing.assert_allclose(got, [expected.value, expected.low, expected.high], rtol=1e-6)
    alone = trainer(tmp_path, eval_dataset=[TASK.prompts[0]] * 4).evaluate()
    assert set(alone) == {"win_rate/reference"}


def test_processes_share_the_prompts(tmp_path, monkeypatch):
    """Each of two, told what one alone would be, finds what is missing of what the other finds."""
    prompts = list(TASK.prompts) * 3 + [TASK.prompts[0]]
    alone, parts = [], []
    monkeypatch.setattr(opponents, "gather_object", lambda given: alone.append(given) or given)
    expected = trainer(tmp_path / "alone", eval_dataset=prompts).evaluate()
    for index in range(2):
        run, found, told = trainer(tmp_path / str(index), eval_dataset=prompts), [], iter(alone)
        run.opponents.own = slice(index, None, 2)

        def gather(given, found=found, told=told):
            found.append(given)
            return next(told)[::-1]  # in no particular order

        monkeypatch.setattr(opponents, "gather_object", gather)
        assert run.evaluate() == expected
        parts.append(found)
    asked = [whole != [{}] for whole in alone]  # no previous one
    assert sum(asked) == 3
    for whole, ours, theirs in itertools.compress(zip(alone, *parts, strict=True), asked):
        assert sorted(ours + theirs) == whole
        assert (len(ours), len(theirs)) == (4, 3)


def test_previous_survives_a_run_that_is_cut_off(tmp_path, cut_off):
    options = {"rounds": 4, "updates": 2, "eval_every": 2, "save_every": 1}
    expected = trainer(tmp_path / "whole", **options).train(progress=False)
    cut_off(trainer(tmp_path / "cut", **options), 5)
    found = trainer(tmp_path / "cut", **options).train(progress=False)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in found] == [
        {k: v for k, v in r.items() if k not in drop} for r in expected
    ]
    assert sum("eval/win_rate/previous" in record for record in found) == 3
    kept = sorted((tmp_path / "cut" / "responses").iterdir())
    assert [path.name for path in kept] == [f"{step:08d}.jsonl" for step in (2, 4, 6, 8)]
    rows = [json.loads(line) for line in kept[-1].read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(TASK.prompts)
    assert all(len(row["responses"]) == 32 for row in rows)


def test_evaluating_writes_nothing_and_moves_nothing(tmp_path):
    run = trainer(tmp_path / "run")
    before = weights_of(run.model)
    assert run.evaluate() == run.evaluate()
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_a_pool_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'previous' is taken"):
        trainer(tmp_path, pool={"previous": model_of("skewed")})
    with pytest.raises(ValueError, match="needs eval_dataset"):
        trainer(tmp_path, pool={"other": model_of("skewed")}, eval_dataset=None)
