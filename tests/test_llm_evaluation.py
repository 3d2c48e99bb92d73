"""Evaluation: intervals that cover, calibration of known size, estimates against enumeration, the command."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from nashpref import zoo  # noqa: E402
from nashpref.cli import main  # noqa: E402
from nashpref.llm import divergence as divergence_module  # noqa: E402
from nashpref.llm.data import Pair, Table  # noqa: E402
from nashpref.llm.divergence import divergence  # noqa: E402
from nashpref.llm.encoding import Encoded, collate  # noqa: E402
from nashpref.llm.evaluation import (  # noqa: E402
    mean,
    pair_report,
    pair_reports,
    perplexity,
    predictions,
    prompt_groups,
    transitivity,
    win_rates,
)
from nashpref.llm.intervals import bootstrap, proportion  # noqa: E402
from nashpref.llm.loading import load_policy  # noqa: E402
from nashpref.llm.logprobs import completion_logps, token_logps  # noqa: E402
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer  # noqa: E402
from nashpref.llm.preferences import (  # noqa: E402
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    TablePreference,
    from_judge,
    from_reward,
)

torch.set_num_threads(1)
KINDS = (PairwisePreferenceModel, GeneralPreferenceModel, BradleyTerryModel)
WORDS = [*"abcdefgh"]
RUNS = 400
SLACK = 3.0 * math.sqrt(0.95 * 0.05 / RUNS)  # three standard deviations of the coverage of 400 intervals


def coverage(truth, draw):
    """The share of intervals that hold the truth."""
    rng = np.random.default_rng(0)
    return np.mean([e.low <= truth <= e.high for e in (draw(rng) for _ in range(RUNS))])


# --- intervals ---


def test_one_outcome_for_each_prompt_gives_wilsons_interval():
    found = proportion([1] * 7 + [0] * 3, range(10))
    z, p, n = 1.959963984540054, 0.7, 10
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.7, middle - half, middle + half), abs=1e-14
    )


def test_proportions_of_independent_outcomes_are_covered_as_promised():
    def draw(rng):
        return proportion(rng.random(150) < 0.8, range(150))

    assert abs(coverage(0.8, draw) - 0.95) <= SLACK


def test_proportions_of_outcomes_that_belong_together_are_covered_only_if_grouped():
    group = np.repeat(np.arange(80), 5)

    def outcomes(rng):
        return rng.random(400) < np.repeat(rng.beta(1.4, 0.6, size=80), 5)

    assert abs(coverage(0.7, lambda rng: proportion(outcomes(rng), group)) - 0.95) <= SLACK
    assert coverage(0.7, lambda rng: proportion(outcomes(rng), range(400))) < 0.88


def test_means_and_ratios_are_covered_as_promised_when_grouped():
    group = np.repeat(np.arange(100), 4)

    def values(rng):
        return np.repeat(rng.gamma(2.0, size=100), 4) + rng.normal(size=400)

    assert abs(coverage(2.0, lambda rng: mean(values(rng), group, rng, resamples=300)) - 0.95) <= SLACK
    assert coverage(2.0, lambda rng: mean(values(rng), range(400), rng, resamples=100)) < 0.88


def test_unanimous_outcomes_have_an_interval_and_a_single_prompt_has_none():
    assert proportion([1.0] * 8, range(8)).low == pytest.approx(1 / (1 + 1.959963984540054**2 / 8))
    assert proportion([1.0] * 8, [0, 0, 0, 0, 1, 1, 1, 1]).low < 0.4  # two prompts know less than eight
    assert proportion([0.0] * 8, range(8)).low == 0.0
    for found in (proportion([0.3, 0.6], [4, 4]), mean([0.3, 0.6], [4, 4], np.random.default_rng(0))):
        assert found.value == pytest.approx(0.45)
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_the_bootstrap_resamples_whole_groups():
    terms, groups = np.array([[1.0], [2.0], [4.0], [8.0]]), [0, 1, 0, 1]
    seen = set()

    def total(sums):
        seen.add(float(sums[0]))
        return sums

    (found,) = bootstrap(terms, groups, total, np.random.default_rng(0), resamples=50)
    assert seen == {10.0, 15.0, 20.0}
    assert (found.value, found.low, found.high) == (15.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [([], [], "0 values"), ([1.0], [0, 1], "one group for each"), ([1.5], [0], "outcomes must be in")],
)
def test_bad_outcomes_are_named(values, groups, message):
    with pytest.raises(ValueError, match=message):
        proportion(values, groups)


# --- pairs ---


def report(p, y, groups=None, **options):
    groups = range(len(p)) if groups is None else groups
    return pair_report(p, y, groups, np.random.default_rng(0), resamples=50, **options)


def test_ties_count_half_and_undecided_labels_not_at_all():
    found = report([0.9, 0.5, 0.2, 0.7], [0.6, 0.8, 1.0, 0.5])
    assert found.accuracy.value == pytest.approx(1.5 / 3)
    assert (found.pairs, found.undecided, found.prompts) == (4, 1, 4)
    assert report([0.9, 0.1], [0.5, 0.5]).accuracy is None


def test_losses_against_soft_labels():
    p, y = np.array([0.9, 0.4]), np.array([0.7, 0.5])
    found = report(p, y)
    assert found.log_loss.value == pytest.approx(np.mean(-y * np.log(p) - (1 - y) * np.log(1 - p)))
    assert found.brier.value == pytest.approx((0.04 + 0.01) / 2)
    assert report([0.0], [1.0]).log_loss.value == pytest.approx(24 * math.log(2))


def test_a_known_miscalibration_is_found():
    found = report(np.full(40, 0.9), np.full(40, 0.7))
    assert found.calibration_error.value == pytest.approx(0.2)
    assert found.debiased_calibration_error == pytest.approx(0.2)
    (only,) = found.reliability
    assert (only.low, only.high, only.pairs) == (0.9, 0.95, 40)
    assert (only.confidence, only.frequency.value) == pytest.approx((0.9, 0.7))


def test_the_error_of_a_calibrated_preference_vanishes_and_debiased_it_is_smaller():
    def found(n, seed):
        rng = np.random.default_rng(seed)
        p = rng.random(n)
        return pair_report(p, rng.random(n) < p, range(n), rng, resamples=2)

    few = [found(200, seed) for seed in range(40)]
    many = [found(50_000, seed) for seed in range(3)]
    assert np.mean([each.calibration_error.value for each in few]) > 0.05
    assert max(each.calibration_error.value for each in many) < 0.01
    # The sum under the root is 0 on average: about half of the roots are 0.
    zeros = np.mean([each.debiased_calibration_error == 0.0 for each in few])
    assert 0.3 < zeros < 0.8


def test_noise_that_prompts_share_is_taken_off_too():
    def squared(seed, grouped):
        rng = np.random.default_rng(seed)
        y = np.repeat(rng.random(40) < 0.75, 10)
        groups = np.repeat(np.arange(40), 10) if grouped else range(400)
        return pair_report(np.full(400, 0.75), y, groups, rng, resamples=1).debiased_calibration_error > 0.0

    assert np.mean([squared(seed, True) for seed in range(60)]) < 0.6
    assert np.mean([squared(seed, False) for seed in range(60)]) > 0.7


def test_which_response_comes_first_changes_nothing():
    rng = np.random.default_rng(0)
    p, y, swap = rng.random(200), rng.random(200), rng.random(200) < 0.5
    one, two = report(p, y), report(np.where(swap, 1 - p, p), np.where(swap, 1 - y, y))
    for name in ("accuracy", "log_loss", "brier", "calibration_error"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-12)
    assert one.debiased_calibration_error == pytest.approx(two.debiased_calibration_error, abs=1e-9)


def test_sources_are_reported_apart():
    pairs = [Pair("x", "a", "b", source="one"), Pair("y", "a", "b", 0.5, source="two")] * 2
    overall, by_source = pair_reports([0.9, 0.9, 0.1, 0.9], pairs, np.random.default_rng(0))
    assert (overall.pairs, overall.prompts, overall.undecided) == (4, 2, 2)
    assert by_source["one"].accuracy.value == 0.5
    assert by_source["two"].accuracy is None


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], "0 predictions"),
        ([0.5], [0.5, 1.0], "2 labels"),
        ([math.nan], [1.0], "predicted"),
        ([0.5], [2.0], "labels"),
    ],
)
def test_bad_predictions_are_named(p, y, message):
    with pytest.raises(ValueError, match=message):
        report(p, y)


def test_predictions_are_those_of_the_preference():
    lengths = from_reward(lambda prompts, responses: [len(response) for response in responses])
    pairs = [Pair("x", "aa", "a"), Pair([{"role": "user", "content": "x"}], "a", "aaa")]
    assert predictions(lengths, pairs) == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))])
    assert prompt_groups([pairs[0].prompt, pairs[1].prompt, "x"]).tolist() == [0, 1, 0]


# --- beyond a ranking ---


def test_cycles_support_and_the_gap_of_the_favourite():
    cycle = zoo.condorcet_cycle(p=0.8).preferences
    line = zoo.bradley_terry([0.0, 1.0, 2.0]).preferences
    found = transitivity([cycle, line, cycle, line], np.random.default_rng(0))
    assert (found.prompts, found.responses, found.without_favourite) == (4, 3.0, 0)
    assert (found.cycles.value, found.condorcet.value, found.support.value) == (0.5, 0.5, 2.0)
    assert found.favourite_gap.value == pytest.approx((0.6 + 0.0) / 2, abs=1e-9)


def test_certain_preferences_have_no_bradley_terry_favourite():
    found = transitivity([np.array([[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]])] * 2, np.random.default_rng(0))
    assert found.favourite_gap is None
    assert found.without_favourite == 2


def test_matrices_too_small_to_cycle_are_refused():
    with pytest.raises(ValueError, match=r"matrices\[0\] has 2 responses"):
        transitivity([np.full((2, 2), 0.5)], np.random.default_rng(0))
    with pytest.raises(ValueError, match="no matrices"):
        transitivity([], np.random.default_rng(0))


# --- win-rates ---


def tabled(count):
    """A random preference over five words, for `count` prompts."""
    rng = np.random.default_rng(5)
    matrices = [zoo.random_preferences(5, rng).preferences for _ in range(count)]
    prompts = [f"prompt {k}" for k in range(count)]
    table = TablePreference([Table(x, tuple("abcde"), P) for x, P in zip(prompts, matrices, strict=True)])
    return prompts, matrices, table


def drawn(rng, policy, prompts, count):
    return [[str(word) for word in rng.choice(list("abcde"), size=count, p=policy)] for _ in prompts]


def test_exchanging_the_players_gives_the_rest_and_oneself_a_half():
    prompts, _, preference = tabled(6)
    rng = np.random.default_rng(0)
    ours, theirs = (drawn(rng, p, prompts, 3) for p in ([0.4, 0.3, 0.1, 0.1, 0.1], [0.2] * 5))
    rates = win_rates(preference, prompts, ours, theirs)
    assert rates + win_rates(preference, prompts, theirs, ours) == pytest.approx(np.ones(6), abs=1e-15)
    assert win_rates(preference, prompts, ours, ours) == pytest.approx(np.full(6, 0.5), abs=1e-15)
    assert not np.allclose(rates, 0.5)


def test_win_rates_are_unbiased():
    prompts, matrices, preference = tabled(30)
    pi, mu = np.array([0.4, 0.3, 0.1, 0.1, 0.1]), np.array([0.0, 0.1, 0.2, 0.3, 0.4])
    exact = np.array([pi @ P @ mu for P in matrices])
    rng = np.random.default_rng(1)
    for first, truth in ((pi, exact), (mu, np.full(30, 0.5))):
        runs = np.array(
            [
                win_rates(preference, prompts, drawn(rng, first, prompts, 2), drawn(rng, mu, prompts, 2))
                for _ in range(60)
            ]
        )
        error = runs.mean() - truth.mean()
        assert abs(error) <= 4.0 * runs.mean(axis=1).std() / math.sqrt(60)


def test_win_rates_are_covered_as_promised():
    prompts, matrices, preference = tabled(20)
    pi, mu = np.array([0.4, 0.3, 0.1, 0.1, 0.1]), np.array([0.0, 0.1, 0.2, 0.3, 0.4])

    def interval(rng):
        asked = [prompts[i] for i in rng.integers(20, size=40)]
        samples = (drawn(rng, policy, asked, 2) for policy in (pi, mu))
        return proportion(win_rates(preference, asked, *samples), range(40))

    assert abs(coverage(np.mean([pi @ P @ mu for P in matrices]), interval) - 0.95) <= SLACK


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_asked_for_every_pair(models, kind):
    model = kind.from_pretrained(models / kind.__name__)
    prompts, ours, theirs = ["a b", "c"], [["d", "e f"], ["a", "g"]], [["b", "h h", "c"], ["c", "d", "e"]]
    expected = [
        np.mean([float(model([x], [y], [z])) for y in ys for z in zs])
        for x, ys, zs in zip(prompts, ours, theirs, strict=True)
    ]
    assert win_rates(model, prompts, ours, theirs) == pytest.approx(expected, abs=1e-6)


def test_a_preference_for_the_first_position_is_refused_and_cancels_when_asked_both_ways():
    def judge(prompts, a, b):
        return torch.full((len(prompts),), 0.7)

    with pytest.raises(ValueError, match="from_judge ask it both ways"):
        win_rates(judge, ["x"], [["a"]], [["b"]])
    assert win_rates(from_judge(judge), ["x"], [["a", "b"]], [["b"]]) == [0.5]


def test_players_without_responses_are_named():
    for prompts, ours in (([], []), (["x"], []), (["x"], [[]])):
        with pytest.raises(ValueError, match="at least one response"):
            win_rates(from_judge(lambda *_: [0.5]), prompts, ours, [["a"]] * len(prompts))


# --- perplexity and KL ---

V, END, LONGEST = 5, 4, 3


def policy(seed, **changes):
    """A small policy over five tokens, of which 4 ends a completion; sharp enough to differ."""
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=16,
        **changes,
    )
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return model


def all_completions():
    """Every completion of at most three tokens, cut where it has not ended."""
    rows = []
    for length in range(1, LONGEST + 1):
        for ids in itertools.product(range(V), repeat=length):
            if END not in ids[:-1] and (ids[-1] == END or length == LONGEST):
                rows.append(Encoded([0, 1, *ids], 2))
    return collate(rows, pad_id=0)


def test_both_estimates_of_kl_have_the_enumerated_one_as_their_mean():
    pi, mu, tokens = policy(1), policy(2), all_completions()
    for temperature in (1.0, 0.7):
        with torch.no_grad():
            log_pi, log_mu = (completion_logps(m, tokens, temperature=temperature).double() for m in (pi, mu))
        weights = log_pi.exp()
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
        exact = float((weights * (log_pi - log_mu)).sum())
        found = divergence(pi, mu, tokens, temperature=temperature)
        sums = [each.double().sum(dim=1) for each in found]
        means = [float((weights * each).sum()) for each in sums]
        assert exact > 0.05
        assert means == pytest.approx([exact, exact], abs=1e-6)
        plain, conditional = (float((weights * (s - exact) ** 2).sum()) for s in sums)
        assert conditional < 0.5 * plain


def test_estimates_from_samples_agree_with_enumeration():
    pi, mu, tokens = policy(1), policy(2), all_completions()
    with torch.no_grad():
        log_pi, log_mu = (completion_logps(m, tokens).double() for m in (pi, mu))
    exact = float((log_pi.exp() * (log_pi - log_mu)).sum())
    rows = torch.multinomial(log_pi.exp(), 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    for each in divergence(pi, mu, type(tokens)(*(t[rows] for t in tokens))):
        found = mean(each.sum(dim=1), range(2000), np.random.default_rng(0), resamples=200)
        assert abs(found.value - exact) <= 4.0 * (found.high - found.low) / 3.92


def test_a_policy_is_at_distance_zero_from_itself():
    pi, tokens = policy(1, attention_dropout=0.5).float().train(), all_completions()
    for each in divergence(pi, pi, tokens):
        assert each.dtype == torch.float32
        assert (each == 0.0).all()
    assert pi.training


def test_logits_are_held_by_chunks_only(monkeypatch):
    pi, mu, tokens = policy(1), policy(2), all_completions()
    whole, sizes = divergence(pi, mu, tokens), []
    head = divergence_module.logits_of

    def watched(causal, states):
        logits = head(causal, states)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(divergence_module, "logits_of", watched)
    parts = divergence(pi, mu, tokens, chunk=40)
    assert max(sizes) == 40
    for one, two in zip(whole, parts, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_other_vocabularies_have_no_distance():
    other = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="vocabularies of 5 and 7 tokens"):
        divergence(policy(1), other, all_completions())


def test_perplexity_is_per_token():
    rng = np.random.default_rng(0)
    found = perplexity([-2.0, -4.0], [3, 5], [0, 1], rng)
    assert found.value == pytest.approx(math.exp(6 / 8))
    assert (found.low, found.high) == pytest.approx((math.exp(2 / 3), math.exp(4 / 5)))


# --- the command ---


def disturbed(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two policies of one tokenizer, another of another, and a preference model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer, other = tiny_tokenizer([" ".join(WORDS)]), tiny_tokenizer([" ".join(WORDS[:4])])
    for name, seed, own in (("policy", 1, tokenizer), ("opponent", 2, tokenizer), ("foreign", 1, other)):
        model = disturbed(tiny_causal_lm(own, layers=1, width=16, context=32), seed)
        model.save_pretrained(folder / name)
        own.save_pretrained(folder / name)
    for kind in KINDS:
        backbone = tiny_causal_lm(tokenizer, layers=1, width=16, context=32)
        disturbed(kind.from_backbone(backbone, tokenizer), 3).save_pretrained(folder / kind.__name__)
    return folder


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    """The models by name, and data, in the current folder."""
    for each in models.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    pairs = [
        {"prompt": f"{x} {y}", "chosen": f"{x} {'ab'[k % 2]}", "rejected": f"{y} {'ba'[k % 2]}"}
        | {"source": "st"[k // 2 % 2]}
        | {"p_chosen": (1.0, 0.7, 0.5)[k % 3]}
        for k, (x, y) in enumerate(itertools.product(WORDS[2:6], WORDS[4:]))
    ]
    cycle = [[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]
    several = [
        {"prompt": "a", "completions": ["a b", "c", "d e f", "g"], "ranking": [0, 1, 1, 2]},
        {"prompt": "b", "completions": ["a", "b", "c"], "preferences": cycle},
        {"prompt": "c", "completions": ["h", "b"], "ranking": [1, 0]},
    ]
    demonstrations = [{"prompt": x, "completion": f"{x} a b"} for x in WORDS]
    bad = [*pairs[:3], {"prompt": "a", "chosen": "b"}]
    named = {"pairs": pairs, "several": several, "demonstrations": demonstrations, "bad": bad, "empty": []}
    for name, rows in {**named, "prompts": [{"prompt": x} for x in WORDS]}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return main(["evaluate", *map(str, arguments)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_measures_preference_models(workplace, capsys, kind):
    name = kind.__name__
    assert run(name, "--data", "pairs.jsonl", "--json", "out.json", "--figure", "out.png") == 0
    said = capsys.readouterr().out
    found = json.loads(Path("out.json").read_text())
    model = kind.from_pretrained(name)
    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    p = model(*([row[field] for row in rows] for field in ("prompt", "chosen", "rejected"))).double().numpy()
    y = np.array([row["p_chosen"] for row in rows])
    overall = found["overall"]
    assert overall["accuracy"]["value"] == pytest.approx(np.mean((p > 0.5)[y != 0.5]))
    assert overall["brier"]["value"] == pytest.approx(np.mean((p - y) ** 2))
    assert overall["accuracy"]["low"] < overall["accuracy"]["value"] < overall["accuracy"]["high"]
    assert {source: each["pairs"] for source, each in found["by_source"].items()} == {"s": 8, "t": 8}
    assert (found["kind"], found["transitivity"]) == (name, None)
    for expected in (
        name,
        "accuracy",
        f"{overall['log_loss']['value']:.3f}",
        "wrote out.json",
        "wrote out.png",
    ):
        assert expected in said
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


def test_rankings_and_tables_show_what_is_beyond_a_ranking(workplace, capsys):
    assert run("GeneralPreferenceModel", "--data", "several.jsonl", "--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())
    assert found["overall"]["pairs"] == 6 + 3 + 1
    assert (found["transitivity"]["prompts"], found["transitivity"]["responses"]) == (2, 3.5)
    labels = found["transitivity_of_tables"]
    assert (labels["cycles"]["value"], labels["support"]["value"]) == (1.0, 3.0)
    assert labels["favourite_gap"] == {"value": pytest.approx(0.8), "low": None, "high": None}
    assert "strict 3-cycles" in capsys.readouterr().out
    assert run("BradleyTerryModel", "--data", "several.jsonl", "--json", "bt.json") == 0
    assert json.loads(Path("bt.json").read_text())["transitivity"]["cycles"]["value"] == 0.0


PLAY = ("--reference", "opponent", "--against", "opponent", "--preference", "GeneralPreferenceModel")
SHORT = ("--max-new-tokens", 6, "--samples", 3, "--batch-size", 6)


def test_the_command_measures_policies(workplace, capsys):
    for name in ("one.json", "two.json"):
        assert run("policy", "--data", "demonstrations.jsonl", *PLAY, *SHORT, "--json", name) == 0
    said, found = capsys.readouterr().out, json.loads(Path("one.json").read_text())
    assert found == json.loads(Path("two.json").read_text())  # the seed is fixed
    model, encoder = load_policy("policy")
    tokens = collate([encoder.encode(x, f"{x} a b") for x in WORDS], encoder.pad_id)
    with torch.no_grad():
        expected = math.exp(-float(token_logps(model, tokens).sum()) / (4 * 8))  # three words and the end
    demonstrations = found["perplexity"]["demonstrations"]
    assert (demonstrations["completions"], demonstrations["tokens"]) == (8, 32)
    assert demonstrations["perplexity"]["value"] == pytest.approx(expected, rel=1e-5)
    kl, plain = found["distance"]["kl"], found["distance"]["plain"]
    assert kl["low"] < plain["high"]
    assert plain["low"] < kl["high"]
    assert kl["high"] - kl["low"] < plain["high"] - plain["low"]
    assert 0.0 < found["win_rate"]["low"] < found["win_rate"]["high"] < 1.0
    assert 1.0 <= found["length"]["value"] <= 6.0
    for expected in ("perplexity", "KL from opponent", "win-rate against opponent"):
        assert expected in said


def test_a_policy_against_itself(workplace):
    play = ("--reference", "policy", "--against", "policy", "--preference", "PairwisePreferenceModel")
    assert run("policy", "--data", "prompts.jsonl", *play, *SHORT, "--prompts", 5, "--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())
    assert (found["prompts"], found["perplexity"]) == (5, {})
    assert found["distance"] == {name: {"value": 0.0, "low": 0.0, "high": 0.0} for name in ("kl", "plain")}
    assert found["win_rate"]["low"] <= 0.5 <= found["win_rate"]["high"]


def test_pairs_have_two_perplexities_and_long_completions_are_counted(workplace):
    row = {"prompt": "a", "chosen": " ".join(["b"] * 50), "rejected": "c"}
    Path("long.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "b"}) + "\n")
    assert run("policy", "--data", "long.jsonl", "--json", "out.json") == 0
    found = json.loads(Path("out.json").read_text())["perplexity"]
    assert {name: (each["truncated"], each["tokens"]) for name, each in found.items()} == {
        "chosen": (2, 62),
        "rejected": (0, 4),
    }


def test_bad_rows_can_be_left_out_and_columns_have_other_names(workplace, capsys):
    assert run("BradleyTerryModel", "--data", "bad.jsonl", "--skip-bad") == 0
    assert "1 bad rows left out" in capsys.readouterr().out
    Path("named.jsonl").write_text('{"q": "a", "best": "b", "worst": "c"}\n')
    columns = [word for item in ("prompt=q", "chosen=best", "rejected=worst") for word in ("--column", item)]
    assert run("BradleyTerryModel", "--data", "named.jsonl", *columns) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("policy --data empty.jsonl", "empty.jsonl: there are no rows"),
        ("policy --data none.jsonl", "none.jsonl: No such file"),
        ("policy --data prompts.jsonl", "no demonstrations or pairs"),
        ("policy --data bad.jsonl", "bad.jsonl:4"),
        (
            "BradleyTerryModel --data demonstrations.jsonl",
            "records[0] is a Demonstration",
        ),
        ("nowhere --data pairs.jsonl", "nowhere: is no folder"),
        ("bare --data pairs.jsonl", "bare: holds no config.json; name a saved model"),
        ("run --data pairs.jsonl", "did you mean run/model?"),
        ("strange --data pairs.jsonl", "strange: holds a BertModel"),
        ("wordless --data pairs.jsonl", "wordless: no tokenizer beside the model"),
        ("damaged --data pairs.jsonl", "damaged: not a whole model"),
        ("garbled --data pairs.jsonl", "names no architecture"),
        ("policy --data pairs.jsonl --against opponent", "--against and --preference"),
        ("policy --data pairs.jsonl --against BradleyTerryModel --preference policy", "a policy, a causal"),
        (
            "policy --data pairs.jsonl --against opponent --preference policy",
            "holds a LlamaForCausalLM",
        ),
        ("policy --data pairs.jsonl --reference foreign", "its tokenizer is another one"),
        ("policy --data pairs.jsonl --reference opponent", "--max-new-tokens 128: the policy reads 32"),
        ("policy --data pairs.jsonl --figure out.png", "calibration of a preference model"),
        ("BradleyTerryModel --data pairs.jsonl --reference policy", "--reference policy: it is for policies"),
        ("policy --data pairs.jsonl --samples 0", "--samples 0"),
        ("policy --data pairs.jsonl --seed -1", "--seed -1"),
        ("policy --data pairs.jsonl --temperature nan", "--temperature nan"),
        ("policy --data pairs.jsonl --column chosen", "FIELD=COLUMN"),
        ("policy --data pairs.jsonl --json pairs.jsonl", "pairs.jsonl: exists already"),
        ("policy --data pairs.jsonl --json a/b.json", "no directory"),
    ],
)
def test_mistakes_are_one_line_exit_2_and_nothing_is_written(workplace, capsys, arguments, message):
    for name in ("bare", "run/model", "strange", "wordless", "damaged", "garbled"):
        Path(name).mkdir(parents=True)
    for name, content in (("run/model", {}), ("strange", {"architectures": ["BertModel"]}), ("garbled", [])):
        Path(name, "config.json").write_text(json.dumps(content))
    for file in Path("policy").iterdir():
        for name in ("wordless", "damaged"):
            if not (name == "wordless" and file.name.startswith("tokenizer")):
                Path(name, file.name).write_bytes(
                    file.read_bytes()[: 200 if "safetensors" in file.name else None]
                )
    before = sorted(workplace.rglob("*"))
    code = run(*arguments.split())
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert sorted(workplace.rglob("*")) == before


def test_the_figure_is_the_same_twice_and_takes_bins_without_an_interval(tmp_path):
    pytest.importorskip("matplotlib")
    from nashpref.paper_figs.reliability import figure

    bins = [(0.5, 0.55, 9, 0.52, 0.5, 0.3, 0.7), (0.9, 0.95, 1, 0.93, 1.0, math.nan, math.nan)]
    for suffix in ("png", "pdf", "svg"):
        for name in ("one", "two"):
            figure(bins, tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_the_sum_of_the_tokens_kls_may_vary_more():
    """Erratum 26: π is μ given that the second token is s, so that log π(y)/μ(y) = log 2 for every y."""
    mu_first, mu_second = np.array([0.5, 0.5]), np.array([0.1, 0.9])  # of s after a and after b
    pi_first = mu_first * mu_second / (mu_first @ mu_second)  # and then s for certain
    log_ratio = np.log(pi_first / mu_first) - np.log(mu_second)
    first = pi_first @ np.log(pi_first / mu_first)
    token_kls = first - np.log(mu_second)
    assert np.allclose(log_ratio, np.log(2.0))
    mean = pi_first @ token_kls
    assert abs(mean - np.log(2.0)) < 1e-12
    assert pi_first @ (token_kls - mean) ** 2 > 0.4
