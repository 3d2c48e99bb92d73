"""The interpreter for language models: policies of one network, mixtures, and runs that resume."""

import json
import math
from collections import Counter

import pytest
import torch

import nashpref as npf
from nashpref.llm.completions import Asked, CompletionSpace
from nashpref.llm.encoding import Encoder
from nashpref.llm.inputs import Lora
from nashpref.llm.interpreter import MirrorObjective
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.policies import Blend, Store
from nashpref.llm.preferences import GeneralPreferenceModel, from_reward
from nashpref.llm.preferences.tournament import win_rates

TOKENIZER = tiny_tokenizer(["a b c", "x y"])
ENCODER = Encoder(TOKENIZER)
PROMPTS = [Asked(i, prompt) for i, prompt in enumerate(["x", "y y x", "x y"])]
ALL_RULES = [
    npf.MWU(eta=0.3),
    npf.GDA(beta=0.1, eta=0.5),
    npf.NashMD(beta=0.1, eta=0.5),
    npf.NashEMA(beta=0.1, eta=0.5),
    npf.OGDA(beta=0.1),
    npf.ONPO(),
    npf.EGPO(beta=0.1),
    npf.MMD(beta=0.1),
    npf.NashMP(beta=0.1),
    npf.COMAL(beta=0.2, every=2),
    npf.MNPO(beta=0.1, eta=0.5),
    npf.BestResponse(beta=0.2),
]


def count_a(prompts, responses):
    return [float(response.split().count("a")) for response in responses]


PREFERENCE = from_reward(count_a)


def lm(seed=0):
    return tiny_causal_lm(TOKENIZER, layers=1, width=16, context=32, seed=seed)


def adapted(seed=0):
    torch.manual_seed(seed)
    return Lora(rank=2).adapt(lm(seed))


def space(model, **options):
    options = {"samples": 3, "max_new_tokens": 4, **options}
    return CompletionSpace(model, ENCODER, PREFERENCE, **options)


def shaken(model, seed=1):
    """Move what is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)


def config(folder, **options):
    options = {"rounds": 3, "updates": 2, "samples": 3, "batch_size": 2, "max_new_tokens": 4, **options}
    return NashConfig(output=str(folder), learning_rate=1e-2, log_every=1, **options)


def trainer(folder, rule, model=None, preference=PREFERENCE, **options):
    prompts = [asked.prompt for asked in PROMPTS]
    keys = ("eval_dataset", "compute_metrics", "generate")
    others = {key: options.pop(key) for key in keys if key in options}
    return NashTrainer(
        model or lm(), rule, preference, config(folder, **options), prompts, TOKENIZER, **others
    )


def weights_of(model):
    return [weight.detach().clone() for weight in model.parameters()]


# --- policies of one network ---


@pytest.mark.parametrize("make", [lm, adapted], ids=["all weights", "lora"])
def test_weights_are_taken_and_put_back(make):
    model = make()
    store = Store(model)
    drawn = space(model).draw(store.take(), PROMPTS, 0, 0)
    before, kept = store.take(), weights_of(model)
    first = space(model).logps(before, drawn)
    shaken(model)
    moved = weights_of(model)
    current = space(model).logps(None, drawn)
    assert (current - first).abs().max() > 0.1
    with store.loaded(before):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), moved, strict=True))
    torch.testing.assert_close(space(model).logps(before, drawn), first)
    store.load(before)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True))


def test_the_reference_of_adapters_is_the_base_exactly():
    base, model = lm(), adapted()
    reference = Store(model).base
    shaken(model)
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        expected, trained = base(ids).logits, model(ids).logits
        with Store(model).loaded(reference):
            assert torch.equal(model(ids).logits, expected)
        assert (trained - expected).abs().max() > 0.01


def test_equal_policies_are_one():
    objective = MirrorObjective(space(lm()), npf.OGDA(beta=0.1))
    assert objective.policy("previous") is objective.policy("current")
    objective.advance({})
    assert objective.policy("current") is objective.policy("next")
    assert objective.policy("previous") is objective.start
    tensors, state = objective.state()
    assert state["kept"] == 2  # the start, which is the reference, and the current policy
    assert len(tensors) == 2 * len(list(objective.network.parameters()))


def test_a_policy_of_no_weight_is_no_part_of_a_mixture():
    objective = MirrorObjective(space(adapted()), npf.NashMD(beta=0.1))  # ηβ = 1 in the first round
    assert objective.policy("mixture") is objective.policy("reference")


# --- sampling ---


def test_systematic_draws_are_spread_over_the_policy():
    """Of K codes at equal distances a completion of probability p has K p, up to one."""
    drawn = space(lm(), samples=64).draw(None, PROMPTS, 0, 0, systematic=True)
    for texts, logps in zip(drawn.responses.texts, drawn.logps, strict=True):
        counts = Counter((text, round(float(logp), 4)) for text, logp in zip(texts, logps, strict=True))
        assert len(counts) > 8
        for (_, logp), count in counts.items():
            assert abs(count - 64 * math.exp(logp)) < 1.01


def test_what_is_drawn_depends_on_the_prompt_and_the_step_alone():
    s = space(lm())
    together = s.draw(None, PROMPTS, 5, 0)
    alone = [s.draw(None, [asked], 5, 0) for asked in PROMPTS]
    assert together.responses.texts == [each.responses.texts[0] for each in alone]
    assert s.draw(None, PROMPTS, 6, 0).responses.texts != together.responses.texts
    assert s.draw(None, PROMPTS, 5, 1).responses.texts != together.responses.texts


def test_a_mixture_is_sampled_by_token_or_weighted_by_response():
    model = lm()
    store = Store(model)
    first = store.take()
    shaken(model)
    blend = Blend(((first, 0.4), (store.take(), 0.6)))
    by_token = space(model).draw(blend, PROMPTS, 0, 0)
    by_response = space(model, mixture="sequence").draw(blend, PROMPTS, 0, 0)
    assert by_token.responses.texts == by_response.responses.texts
    assert torch.equal(by_token.weights, torch.full((3, 3), 1 / 3))
    torch.testing.assert_close(by_response.weights.sum(dim=1), torch.ones(3))
    # w ∝ Π_k π_k(y)^{w_k} / π_mixture(y)
    s = space(model)
    whole = sum(weight * s.logps(part, by_token) for part, weight in blend.parts)
    expected = torch.softmax(whole - by_token.logps, dim=1)
    torch.testing.assert_close(by_response.weights, expected, rtol=0, atol=1e-5)
    assert by_response.weights.std() > 1e-3


def test_win_rates_of_repeated_responses():
    asked = []

    def judge(prompts, a, b):
        asked.extend(zip(prompts, a, b, strict=True))
        return PREFERENCE(prompts, a, b)

    a, b = [["a", "a", "b c"], ["c", "a b c", "c"]], [["a", "b"], ["c c", "c c"]]
    rates = win_rates(judge, ["x", "y"], a, b)
    assert len(asked) == len(set(asked)) == 4 + 2
    for x in range(2):
        for i in range(3):
            for k in range(2):
                expected = 1 / (1 + math.exp(b[x][k].count("a") - a[x][i].count("a")))
                assert abs(rates[x, i, k] - expected) < 1e-12


def test_models_are_asked_once_for_each_response():
    model = GeneralPreferenceModel.from_backbone(lm(), TOKENIZER)
    a, b = [["a", "a", "b c"], ["c", "a b c", "c"]], [["a", "b"], ["c c", "c c"]]
    rates = win_rates(model, ["x", "y"], a, b)
    one_by_one = win_rates(lambda *triples: model(*triples), ["x", "y"], a, b)
    torch.testing.assert_close(rates, one_by_one, rtol=0, atol=1e-6)


# --- runs ---


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_trains(rule, tmp_path):
    run = trainer(tmp_path, rule, eval_dataset=["x", "y"])
    before = weights_of(run.model)
    *log, last, evaluation = run.train(progress=False)
    assert run.steps == last["step"] == 6 * sum(bool(step.payoffs) for step in rule.steps(0))
    assert last["round"] == 3.0
    assert all(math.isfinite(record["loss"]) for record in log)
    assert last["residual"] > 0.0
    assert 0.0 < evaluation["eval/win_rate/reference"] < 1.0
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    current = run.objective.policy("current")
    assert all(torch.equal(a, b) for a, b in zip(current.tensors, run.model.parameters(), strict=True))


@pytest.mark.parametrize("estimator", ["regression", "on_policy", "policy_gradient"])
def test_the_answer_with_more_a_wins(estimator, tmp_path):
    run = trainer(
        tmp_path,
        npf.NashMD(beta=0.05, eta=1.0),
        rounds=40,
        samples=8,
        batch_size=3,
        estimator=estimator,
        eval_dataset=[asked.prompt for asked in PROMPTS] * 4,
    )
    before = run.evaluate()["win_rate/reference"]
    assert abs(before - 0.5) < 0.1
    assert run.train(progress=False)[-1]["eval/win_rate/reference"] > 0.7


@pytest.mark.parametrize("make", [lm, adapted], ids=["all weights", "lora"])
@pytest.mark.parametrize(
    ("stop", "shared"),
    [(2, {}), (7, {}), (10, {"updates": 6, "reuse": 3, "samples": 5, "batch_responses": 2})],
)
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(stop, shared, make, tmp_path, cut_off):
    """OGDA keeps three policies; several updates a round, so that some stops are in the middle of one."""
    rule = npf.OGDA(beta=0.1)
    options = {"rounds": 4, "save_every": 1, **shared}
    whole = trainer(tmp_path / "whole", rule, make(), **options)
    expected = whole.train(progress=False)
    cut_off(trainer(tmp_path / "cut", rule, make(), **options), stop)
    again = trainer(tmp_path / "cut", rule, make(), **options)
    found = again.train(progress=False)
    assert 0 < again.objective.taken == whole.objective.taken == whole.steps
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    drop = {"seconds"}
    assert [{k: v for k, v in r.items() if k not in drop} for r in found] == [
        {k: v for k, v in r.items() if k not in drop} for r in expected
    ]


def test_another_rule_does_not_go_on(tmp_path):
    trainer(tmp_path, npf.GDA(beta=0.1), save_every=1).train(progress=False)
    described = json.loads((tmp_path / "config.json").read_text())["rule"]
    assert described == {"name": "GDA", "beta": 0.1, "eta": None}
    with pytest.raises(ValueError, match=r"beta"):
        trainer(tmp_path, npf.GDA(beta=0.2), save_every=1).train(progress=False)


def test_metrics_are_of_the_policy_after_the_last_whole_round(tmp_path):
    seen = []

    def compute_metrics(model):
        seen.append(weights_of(model))
        return {"gap": 1.0}

    run = trainer(tmp_path, npf.EGPO(beta=0.1), compute_metrics=compute_metrics, eval_every=3)
    log = run.train(progress=False)
    assert [record["step"] for record in log if "eval/gap" in record] == [3, 6, 9, 12]
    start = weights_of(lm())
    assert all(torch.equal(a, b) for a, b in zip(seen[0], start, strict=True))  # in the middle of the first
    assert any(not torch.equal(a, b) for a, b in zip(seen[1], start, strict=True))


def test_samples_of_another_generator(tmp_path):
    def generate(model, prompts, count):
        return [["a", "b a", "c c c"][:count] for _ in prompts]

    run = trainer(tmp_path / "1", npf.GDA(beta=0.1), generate=generate)
    assert math.isfinite(run.train(progress=False)[-1]["loss"])
    with pytest.raises(ValueError, match="a mixture is sampled token by token"):
        trainer(tmp_path / "2", npf.NashMD(beta=0.1, eta=1.0), generate=generate).train(progress=False)
    few = trainer(tmp_path / "3", npf.GDA(beta=0.1), generate=lambda model, prompts, count: [["a"]] * 2)
    with pytest.raises(ValueError, match=r"generate gave \[1, 1\] completions: 3"):
        few.train(progress=False)


def test_schedules(tmp_path):
    eta = [1.0, 0.5, 0.25]
    run = trainer(tmp_path, npf.GDA(beta=0.1, eta=lambda t: eta[t]))  # there is none of a fourth round
    assert run.train(progress=False)[-1]["round"] == 3.0
    assert json.loads((tmp_path / "config.json").read_text())["rule"]["eta"] == eta


def test_what_is_saved_is_the_trained_policy(tmp_path):
    from transformers import AutoModelForCausalLM

    run = trainer(tmp_path / "run", npf.GDA(beta=0.1), adapted())
    run.train(progress=False)
    run.save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, run.model(ids).logits)


def test_mistakes(tmp_path):
    rule = npf.GDA(beta=0.1)
    for options, message in (
        ({"rounds": 0}, "rounds = 0"),
        ({"updates": 0}, "updates = 0"),
        ({"samples": 1}, "at least 2"),
        ({"epochs": 2}, "epochs = 2"),
        ({"estimator": "on_policy", "mixture": "sequence"}, "only weighted"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, rule, **options)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        NashTrainer(lm(), rule, PREFERENCE, config(tmp_path), ["x"])
    with pytest.raises(ValueError, match="there are no rows"):
        NashTrainer(lm(), rule, PREFERENCE, config(tmp_path), [], TOKENIZER)
    bad = from_reward(lambda prompts, responses: [math.nan] * len(responses))
    with pytest.raises(ValueError, match="nan"):
        trainer(tmp_path / "nan", rule, preference=bad).train(progress=False)
    frozen = lm()
    for weight in frozen.parameters():
        weight.requires_grad = False
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(tmp_path, rule, frozen)
    assert not any(tmp_path.glob("*.json"))
