"""Decoding with a reward or a preference: what comes out has exactly the distribution that is promised."""

import copy
import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers import LogitsProcessorList  # noqa: E402

import nashpref as npf  # noqa: E402
from nashpref.bradley_terry import fit_bradley_terry  # noqa: E402
from nashpref.llm.data import Pair  # noqa: E402
from nashpref.llm.decoding import (  # noqa: E402
    FarmaModel,
    NextTokenScores,
    PrefixScores,
    PrefixValueModel,
    RewardGuided,
    TextScores,
    best_of_n,
    bradley_terry_of_n,
    budget_forcing,
    cards,
    encode_prompts,
    equilibrium_of_n,
    generate,
    guided,
    prefix_pairs,
    rejection_sampling,
    scores_of,
    self_consistency,
)
from nashpref.llm.decoding.reading import Reader  # noqa: E402
from nashpref.llm.encoding import Encoder, encode_pairs  # noqa: E402
from nashpref.llm.environments import bradley_terry, rock_paper_scissors_of_styles  # noqa: E402
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer  # noqa: E402
from nashpref.llm.preferences import BradleyTerryModel, TablePreference  # noqa: E402
from nashpref.llm.preferences.adapters import Table  # noqa: E402

TOKENIZER = tiny_tokenizer(["a b c", "x y", "Wait </t>"])
ENCODER = Encoder(TOKENIZER)
PROMPTS = ["x", "y y x y x", "x y"]
KINDS = [BradleyTerryModel, PrefixValueModel, FarmaModel]


def noisy(model, seed=0, scale=0.3):
    """Sharp enough for wrong contexts to show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return model


def lm(kind="gpt2", seed=0, scale=0.3):
    return noisy(tiny_causal_lm(TOKENIZER, layers=2, width=16, kind=kind, context=64, seed=seed), seed, scale)


def guide(kind, backbone="gpt2", seed=5):
    model = kind.from_backbone(lm(backbone, seed), TOKENIZER)
    noisy(model.head, seed, 0.5)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_hand(model, ids):
    """r of one sequence of tokens, read as a whole and by itself."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        if isinstance(model, FarmaModel):
            return model.head(model.backbone(ids[:, :-1])[0][:, -1])[0, ids[0, -1]].item()
        return model.head(model.backbone(ids)[0][:, -1])[0, 0].item()


# --- prefixes, read as they grow ---


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_growing_prefixes_are_those_of_reading_each_by_itself(kind, backbone):
    model = guide(kind, backbone)
    prompts = encode_prompts(ENCODER, PROMPTS, room=8)
    assert prompts.mask[0, 0] == 0
    scores = scores_of(model, ENCODER, prompts)
    assert isinstance(scores, NextTokenScores if kind is FarmaModel else PrefixScores)
    rng = np.random.default_rng(0)
    ids = prompts.ids.repeat_interleave(2, dim=0)  # two responses to each prompt
    for step in range(4):
        candidates = torch.from_numpy(rng.integers(0, len(TOKENIZER), (6, 5)))
        found = scores(ids, candidates)
        for row, k in itertools.product(range(6), range(5)):
            bare = ids[row, int((prompts.mask[row // 2] == 0).sum()) :].tolist()
            assert abs(found[row, k] - by_hand(model, [*bare, int(candidates[row, k])])) < 1e-4
        if step == 2:  # others than before: as beams that change places
            ids = ids.flip(0).index_select(0, torch.tensor([1, 0, 3, 2, 5, 4])).flip(0)
        ids = torch.cat([ids, torch.from_numpy(rng.integers(0, len(TOKENIZER), (6, 1)))], dim=1)


def test_only_what_is_new_is_read():
    model, seen = guide(BradleyTerryModel), []
    model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    reader, ids = Reader(model.backbone), torch.randint(len(TOKENIZER), (2, 6), generator=seeded())
    for width in (4, 5, 6):
        reader.ahead(ids[:, :width], ids[:, :3])
    assert seen == [(2, 4 + 3), (2, 1 + 3), (2, 1 + 3)]


# --- guided decoding ---


def enumerated(policy, prompt, reward, beta, top_k, length):
    """Every response of up to `length` tokens with its probability under guidance, by hand."""
    end = ENCODER.end_id
    front = list(ENCODER.encode_prompt(prompt).ids)
    found, open_ = {}, {(): 1.0}
    for t in range(length):
        longer = {}
        for said, p in open_.items():
            with torch.no_grad():
                log_mu = torch.log_softmax(policy(torch.tensor([front + list(said)])).logits[0, -1], -1)
            kept = log_mu.topk(top_k).indices.tolist()
            weights = np.array([math.exp(log_mu[v].item() + reward([*said, v]) / beta) for v in kept])
            for v, w in zip(kept, weights / weights.sum(), strict=True):
                done = v == end or t + 1 == length
                (found if done else longer)[(*said, v)] = p * w
        open_ = longer
    assert abs(sum(found.values()) - 1.0) < 1e-9
    return found


def frequencies(rows):
    counts = {}
    for row in rows:
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    return counts


def agrees(counts, expected, N):
    """Chi-square over outcomes expected more than five times; outcomes that are impossible do not occur."""
    assert set(counts) <= set(expected)
    often = {key: N * p for key, p in expected.items() if N * p > 5}
    chi2 = sum((counts.get(key, 0) - e) ** 2 / e for key, e in often.items())
    assert len(often) > 5
    return chi2 < len(often) + 5.0 * math.sqrt(2.0 * len(often))


def letters(prompts, responses):
    return [1.5 * y.count("a") - y.count("b") - 0.5 * len(y.split()) ** 2 for y in responses]


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_the_distribution_of_sequences_is_that_of_enumeration(kind):
    policy, N = lm(scale=0.15), 2000
    model = letters if kind is None else guide(kind)
    prompts = encode_prompts(ENCODER, ["x y", "y y x y x"], room=3)
    front = list(ENCODER.encode_prompt("x y").ids)

    def reward(said):
        if kind is None:
            text = TOKENIZER.decode([v for v in said if v != ENCODER.end_id])
            return letters([""], [text])[0]
        return by_hand(model, front + said)

    processor = RewardGuided(scores_of(model, ENCODER, prompts), beta=0.8, top_k=4)
    rows = generate(
        policy,
        ENCODER,
        prompts.ids,
        prompts.mask,
        max_new_tokens=3,
        count=N,
        processors=[processor],
        generator=seeded(),
    )
    expected = enumerated(policy, "x y", reward, 0.8, 4, 3)
    assert agrees(frequencies(rows[:N]), expected, N)  # beside another prompt, and padded
    other = enumerated(policy, "x y", reward, 1.6, 4, 3)
    assert not agrees(frequencies(rows[:N]), other, N)


def test_extreme_weights_are_the_policy_and_the_best_reward():
    policy = lm()
    prompts = encode_prompts(ENCODER, PROMPTS, room=4)
    logits = policy(prompts.ids, attention_mask=prompts.mask).logits[:, -1].detach()
    top = logits.topk(5)
    rewards = torch.randn(3, 5, generator=seeded())
    ask = lambda beta: RewardGuided(lambda ids, candidates: rewards, beta, 5)(prompts.ids, logits)  # noqa: E731
    flat = torch.softmax(ask(1e9), -1)
    torch.testing.assert_close(flat.gather(1, top.indices), torch.softmax(top.values, -1))
    assert torch.equal((flat > 0).sum(1), torch.tensor([5, 5, 5]))
    sharp = torch.softmax(ask(1e-5), -1).argmax(1)
    assert torch.equal(sharp, top.indices.gather(1, rewards.argmax(1, keepdim=True))[:, 0])


def test_greedy_guidance_takes_the_best_sum_and_generate_takes_the_processor():
    policy, model = lm(), guide(FarmaModel)
    prompts = encode_prompts(ENCODER, ["x y"], room=3)
    processor = RewardGuided(scores_of(model, ENCODER, prompts), beta=0.5, top_k=6)
    ids = policy.generate(
        prompts.ids,
        attention_mask=prompts.mask,
        do_sample=False,
        max_new_tokens=3,
        pad_token_id=ENCODER.pad_id,
        logits_processor=LogitsProcessorList([processor]),
    )
    front = list(ENCODER.encode_prompt("x y").ids)
    said = []
    for _ in range(3):
        with torch.no_grad():
            log_mu = torch.log_softmax(policy(torch.tensor([front + said])).logits[0, -1], -1)
        sums = {
            v: log_mu[v].item() + by_hand(model, [*front, *said, v]) / 0.5
            for v in log_mu.topk(6).indices.tolist()
        }
        said.append(max(sums, key=sums.get))
        if said[-1] == ENCODER.end_id:
            break
    assert ids[0, len(front) :].tolist()[: len(said)] == said
    assert guided(policy, ENCODER, ["x y"], model, beta=0.5, top_k=6, max_new_tokens=3, greedy=True) == [
        TOKENIZER.batch_decode([[v for v in said if v != ENCODER.end_id]])
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_company_change_nothing(kind):
    policy, model = lm("llama"), guide(kind, "llama")
    options = {"beta": 0.3, "top_k": 5, "max_new_tokens": 6, "greedy": True}
    together = guided(policy, ENCODER, PROMPTS, model, count=1, **options)
    alone = [guided(policy, ENCODER, [prompt], model, **options)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({each[0] for each in together}) > 1


def test_other_tokens_are_refused_and_so_are_numbers_out_of_range():
    other = tiny_tokenizer(["a b c d"])
    stranger = BradleyTerryModel.from_backbone(tiny_causal_lm(other, layers=1, width=16), other)
    prompts = encode_prompts(ENCODER, ["x"], room=2)
    with pytest.raises(ValueError, match="BradleyTerryModel reads other tokens"):
        scores_of(stranger, ENCODER, prompts)
    with pytest.raises(ValueError, match="beta = 0"):
        RewardGuided(lambda ids, candidates: candidates, 0.0)
    with pytest.raises(ValueError, match="top_k = 0"):
        RewardGuided(lambda ids, candidates: candidates, 1.0, 0)
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    wrong = RewardGuided(lambda ids, candidates: torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), 1.0, 2)
    with pytest.raises(ValueError, match="row 1 with candidate 1, token 1, is nan"):
        wrong(torch.zeros(2, 1, dtype=torch.int64), logits)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        RewardGuided(lambda ids, candidates: torch.zeros(2), 1.0, 2)(torch.zeros(2, 1), logits)
    with pytest.raises(ValueError, match="give generator"):
        guided(lm(), ENCODER, ["x"], letters, beta=1.0, max_new_tokens=2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda y: [math.nan if "a" in each else 0.0 for each in y], r"gave nan for sample \d+ \(\"x y\"\)"),
        (lambda y: [0.0] * (len(y) - 1), "values for 2 samples"),
        (lambda y: [1.0 / (each != "a") for each in y], r"failed at sample 1 \(\"x y\"\): ZeroDivisionError"),
        (lambda y: None, "gave None: 2 numbers"),
    ],
)
def test_a_reward_that_misbehaves_is_named_with_its_sample(fault, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(lambda x, y: fault(y), ["x y"], [["b", "a"]])
    prompts = encode_prompts(ENCODER, ["x y"], room=2)
    scores = TextScores(lambda x, y: fault(y), ENCODER, prompts)
    pair = torch.tensor([TOKENIZER.convert_tokens_to_ids(["b", "a"])])
    with pytest.raises(ValueError, match=message):
        scores(prompts.ids, pair)


def test_pairs_of_beginnings():
    pairs = encode_pairs(ENCODER, [Pair("x", "a b c", "a c", 0.8, 0.5)])
    cut = prefix_pairs(pairs)
    front = list(pairs[0].chosen.ids[: pairs[0].chosen.start])
    said = [
        (
            TOKENIZER.decode(list(c.chosen.ids)[len(front) :]),
            TOKENIZER.decode(list(c.rejected.ids)[len(front) :]),
        )
        for c in cut
    ]
    # The first tokens are equal, and so no pair.
    assert said == [("a b", "a c"), ("a b c", "a c <eos>"), ("a b c <eos>", "a c <eos>")]
    assert {(c.p_chosen, c.margin) for c in cut} == {(0.8, 0.5)}
    assert len(prefix_pairs(pairs, 3)) == 2
    assert list(prefix_pairs(pairs, 9)[0].chosen.ids) == list(pairs[0].chosen.ids)
    with pytest.raises(ValueError, match="every = 0"):
        prefix_pairs(pairs, 0)


# --- CARDS ---


def chain_rule(policy, prompt, length):
    return enumerated(policy, prompt, lambda said: 0.0, 1.0, len(TOKENIZER), length)


@pytest.mark.parametrize("entropy", [0.0, 2.43, math.inf])
def test_a_constant_reward_leaves_the_policy(entropy):
    policy, N = lm(scale=0.15), 3000
    found = cards(
        policy,
        ENCODER,
        ["x y"] * N,
        lambda x, y: [0.25] * len(y),
        goal=0.25,
        floor=0.25,
        beta=0.1,
        entropy=entropy,
        max_new_tokens=3,
        generator=seeded(),
    )
    expected = {}
    for said, p in chain_rule(policy, "x y", 3).items():
        text = TOKENIZER.decode([v for v in said if v != ENCODER.end_id])
        expected[(text,)] = expected.get((text,), 0.0) + p
    assert agrees(frequencies([(text,) for text in found.texts]), expected, N)
    assert found.forced.sum() == 0
    lengths = np.array([len(text.split()) for text in found.texts])
    if entropy == math.inf:
        assert (found.proposals == 1).all()
    elif entropy == 0.0:  # a token each
        assert (found.proposals == np.minimum(lengths + 1, 3)).all()
    else:
        assert 1.0 < found.proposals.mean() < (np.minimum(lengths + 1, 3)).mean()


def test_segments_are_drawn_until_they_are_good_enough_or_the_tries_are_spent():
    policy, prompts = lm(scale=0.15), ["x y"] * 200
    options = {"beta": 0.05, "entropy": 0.0, "max_new_tokens": 3}
    picky = cards(policy, ENCODER, prompts, letters, goal=-0.5, floor=0.5, generator=seeded(), **options)
    lax = cards(policy, ENCODER, prompts, letters, goal=-99.0, floor=-99.0, generator=seeded(), **options)
    assert picky.rewards.mean() > lax.rewards.mean() + 0.5
    assert picky.proposals.mean() > lax.proposals.mean()
    np.testing.assert_allclose(picky.rewards, letters(prompts, picky.texts))
    hopeless = cards(
        policy, ENCODER, prompts, letters, goal=1e6, floor=1e6, generator=seeded(), tries=4, **options
    )
    assert (hopeless.proposals == 4 * hopeless.forced).all()
    assert hopeless.rewards.mean() > lax.rewards.mean()  # the best of four each
    with pytest.raises(ValueError, match="sample 0"):
        cards(policy, ENCODER, ["x"], lambda x, y: [math.nan], goal=0, floor=0, generator=seeded(), **options)
    with pytest.raises(ValueError, match="finite thresholds"):
        cards(policy, ENCODER, ["x"], letters, goal=math.inf, floor=0, generator=seeded(), **options)


# --- one out of several ---


def test_best_of_n_takes_the_first_of_the_best():
    chosen = best_of_n(
        lambda x, y: [float(len(each)) for each in y], ["p", "q"], [["a", "bb", "cc"], ["", "x", ""]]
    )
    assert chosen.texts == ["bb", "x"]
    assert chosen.chosen.tolist() == [1, 1]
    assert chosen.scores.tolist() == [[1.0, 2.0, 2.0], [0.0, 1.0, 0.0]]
    assert chosen.mixture.tolist() == [[0.0, 1.0, 0.0]] * 2
    with pytest.raises(ValueError, match=r"groups of \[1, 2\]"):
        best_of_n(letters, ["p", "q"], [["a"], ["b", "c"]])


def test_rejection_sampling_is_rlhfs_optimum():
    words, mu, r, N = ["a", "b", "c"], np.array([0.6, 0.3, 0.1]), np.array([-1.0, 0.0, 1.5]), 20_000
    rng = np.random.default_rng(0)
    draw = lambda prompts: [words[i] for i in rng.choice(3, len(prompts), p=mu)]  # noqa: E731
    reward = lambda x, y: [r[words.index(each)] for each in y]  # noqa: E731
    found = rejection_sampling(draw, reward, ["p"] * N, seeded(), beta=0.7, bound=2.0, tries=1000)
    optimum = mu * np.exp(r / 0.7)
    optimum /= optimum.sum()
    shares = np.array([found.texts.count(word) for word in words]) / N
    assert np.abs(shares - optimum).max() < 4.0 * math.sqrt(0.25 / N)
    assert found.exact.all()
    expected = 1.0 / (mu * np.exp((r - 2.0) / 0.7)).sum()
    assert abs(found.draws.mean() / expected - 1.0) < 0.05
    few = rejection_sampling(draw, reward, ["p"] * 50, seeded(), beta=0.01, bound=2.0, tries=3)
    assert not few.exact.any()
    assert (few.draws == 3).all()
    assert few.rewards.tolist() == reward([], few.texts)
    with pytest.raises(ValueError, match=r"1.5 for sample \d+ .* above bound"):
        rejection_sampling(draw, reward, ["p"] * 50, seeded(), beta=1.0, bound=1.0)


def test_the_majority_answers_and_of_equals_the_first():
    extract = lambda y: y.split("=")[1] if "=" in y else None  # noqa: E731
    vote = self_consistency(
        extract, [["p=1", "q=2", "r=2"], ["a=2", "b=1", "c=1", "d=2", "none"], ["no", "none"]]
    )
    assert vote.answers == ["2", "2", None]
    assert vote.texts == ["q=2", "a=2", "no"]
    np.testing.assert_allclose(vote.shares, [2 / 3, 2 / 5, 0.0])
    with pytest.raises(ValueError, match=r"responses\[1\] is empty"):
        self_consistency(extract, [["x"], []])


def test_the_mixture_is_the_equilibrium_of_the_true_matrix():
    task = rock_paper_scissors_of_styles(2, length=2)
    rng = np.random.default_rng(0)
    groups = [rng.choice(task.responses, 7, replace=False).tolist() for _ in task.prompts]
    found = equilibrium_of_n(task, task.prompts, groups, seeded(), beta=0.0)
    for prompt, each, mixture, scores in zip(task.prompts, groups, found.mixture, found.scores, strict=True):
        P = task.matrix(prompt, each)
        np.testing.assert_allclose(mixture, npf.equilibrium(npf.MatrixGame(P)).policy, atol=1e-9)
        np.testing.assert_allclose(scores, P.mean(axis=1))
        assert (mixture > 1e-6).sum() > 1
    regularised = equilibrium_of_n(task, task.prompts, groups, seeded(), beta=0.2).mixture
    game = npf.MatrixGame(np.stack([task.matrix(x, y) for x, y in zip(task.prompts, groups, strict=True)]))
    np.testing.assert_allclose(regularised, npf.equilibrium(game, 0.2).policy, atol=1e-9)
    N = 4000
    many = equilibrium_of_n(task, [task.prompts[0]] * N, [groups[0]] * N, seeded(1))
    drawn = np.bincount(many.chosen, minlength=7) / N
    assert np.abs(drawn - found.mixture[0]).max() < 4.0 * math.sqrt(0.25 / N)
    assert many.texts[:20] == [groups[0][i] for i in many.chosen[:20]]


def test_under_a_reward_equilibrium_and_bradley_terry_are_best_of_n():
    task = bradley_terry(3, length=3)
    rng = np.random.default_rng(1)
    groups = [rng.choice(task.responses, 6, replace=False).tolist() for _ in task.prompts]
    rewards = {
        x: dict(zip(task.responses, task.matrix(x, task.responses)[:, 0], strict=True)) for x in task.prompts
    }
    best = best_of_n(lambda x, y: [rewards[a][b] for a, b in zip(x, y, strict=True)], task.prompts, groups)
    ranked = bradley_terry_of_n(task, task.prompts, groups)
    mixed = equilibrium_of_n(task, task.prompts, groups, seeded())
    assert best.texts == ranked.texts == mixed.texts
    np.testing.assert_allclose(mixed.mixture, best.mixture, atol=1e-9)


def test_mean_win_rates_rank_as_the_bradley_terry_fit_does():
    rng = np.random.default_rng(2)
    words = [f"w{i}" for i in range(6)]
    for _ in range(20):
        P = npf.zoo.random_preferences(6, rng).preferences
        table = TablePreference([Table("p", words, P)])
        scores = fit_bradley_terry(P).scores
        found = bradley_terry_of_n(table, ["p"], [words])
        assert found.chosen[0] == scores.argmax()
        assert np.argsort(found.scores[0]).tolist() == np.argsort(scores).tolist()


@pytest.mark.parametrize(("make", "cyclic"), [(rock_paper_scissors_of_styles, True), (bradley_terry, False)])
def test_the_equilibrium_is_less_exploitable_where_there_is_a_cycle_and_nowhere_else(make, cyclic):
    """Exact gaps of the answers' distribution, in batches of candidates, with three standard errors."""
    task = make(2, length=2, skew=0.4)
    rng, batches, draws, n = np.random.default_rng(0), 6, 60, 12
    policy = 0.98 * task.reference
    gaps = {"equilibrium": [], "bradley_terry": []}
    for batch in range(batches):
        induced = {name: np.zeros((2, task.count + 1)) for name in gaps}
        for b, prompt in enumerate(task.prompts):
            picked = rng.choice(task.count + 1, (draws, n), p=[*policy[b], 1.0 - policy[b].sum()])
            words = np.array([*task.responses, "<unk>"])
            groups = words[picked].tolist()
            chosen = {
                "equilibrium": equilibrium_of_n(task, [prompt] * draws, groups, seeded(batch)),
                "bradley_terry": bradley_terry_of_n(task, [prompt] * draws, groups),
            }
            for name, each in chosen.items():
                np.add.at(induced[name][b], picked, each.mixture / draws)
        for name in gaps:
            gaps[name].append(npf.duality_gap(task.game(), induced[name]).mean())
    difference = np.array(gaps["bradley_terry"]) - np.array(gaps["equilibrium"])
    error = difference.std(ddof=1) / math.sqrt(batches)
    if cyclic:
        assert difference.mean() - 3.0 * error > 0.2
    else:
        assert np.abs(difference).max() < 1e-9


# --- budget forcing ---


def thinker(weights):
    """A policy whose next token depends on nothing: `weights` by token."""
    policy = tiny_causal_lm(TOKENIZER, layers=1, width=16, kind="llama", context=128)
    policy = copy.deepcopy(policy)
    policy.config.tie_word_embeddings = False
    logits = torch.full((len(TOKENIZER),), -30.0)
    for token, weight in weights.items():
        logits[TOKENIZER.convert_tokens_to_ids(token)] = math.log(weight)
    policy.lm_head = torch.nn.Linear(16, len(TOKENIZER))
    with torch.no_grad():
        policy.lm_head.weight.zero_()
        policy.lm_head.bias.copy_(logits)
    return policy


@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.parametrize("stops", ["</t>", "<eos>"])
def test_the_model_waits_exactly_as_often_as_it_is_told(times, stops):
    policy = thinker({"a": 0.5, stops: 0.5} | ({"<eos>": 0.2} if stops == "</t>" else {}))
    found = budget_forcing(
        policy,
        ENCODER,
        PROMPTS * 5,
        end="</t>",
        wait="Wait b",
        times=times,
        max_thinking=100,
        max_answer=4,
        generator=seeded(),
    )
    assert [each.waits for each in found] == [times] * 15
    assert [each.thinking.count("Wait b") for each in found] == [times] * 15
    assert not any("</t>" in each.thinking or "<eos>" in each.thinking for each in found)
    assert all(each.tokens == len(each.thinking.split()) for each in found)
    assert len({each.tokens for each in found}) > 1
    assert all(len(each.answer.split()) <= 4 for each in found)


def test_thinking_that_does_not_end_is_ended():
    options = {"end": "</t>", "times": 2, "max_thinking": 7, "max_answer": 2, "generator": seeded()}
    found = budget_forcing(thinker({"a": 1.0}), ENCODER, ["x", "y x"], **options)
    assert [(each.thinking, each.answer, each.waits) for each in found] == [("a a a a a a a", "a a", 0)] * 2
    hasty = budget_forcing(thinker({"</t>": 1.0}), ENCODER, ["x"], wait="Wait b c", **options)
    assert hasty[0].thinking == "Wait b c Wait b c"
    assert hasty[0].answer == "</t> </t>"
    tight = budget_forcing(
        thinker({"</t>": 1.0}), ENCODER, ["x"], wait="Wait b c", **options | {"max_thinking": 6}
    )
    assert tight[0].waits == 1  # a second one would leave no token to think
    with pytest.raises(ValueError, match="no single token"):
        budget_forcing(thinker({"a": 1.0}), ENCODER, ["x"], **options | {"end": "a b"})
    with pytest.raises(ValueError, match="has no token"):
        budget_forcing(thinker({"a": 1.0}), ENCODER, ["x"], wait="", **options)
