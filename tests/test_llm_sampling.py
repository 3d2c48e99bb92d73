"""Sampling: what is reported is what was done, whatever the batch, and mixtures are mixtures."""

import itertools

import numpy as np
import pytest
import torch

from nashpref.llm.encoding import Encoder, collate
from nashpref.llm.logprobs import completion_logps, token_logps
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.sampling import Mixture, Network, mixture_logps, sample

TOKENIZER = tiny_tokenizer(["a b c"])
ENCODER = Encoder(TOKENIZER)
PROMPTS = ["a", "b a c c a b", "c b", "a a a"]


def model(kind="llama", seed=0, noise=1.0):
    """Sharp enough for wrong contexts to show."""
    lm = tiny_causal_lm(TOKENIZER, layers=2, width=16, kind=kind, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in lm.parameters():
            weight += noise * 0.3 * torch.randn(weight.shape, generator=generator)
    return lm


def mixture(kind="llama", weights=(0.7, 0.3)):
    return Mixture([Network(model(kind, 0)), Network(model(kind, 1))], list(weights))


def draw(policy, prompts=PROMPTS, count=3, seed=0, **options):
    options = {"max_new_tokens": 6, **options}
    return sample(policy, ENCODER, prompts, count, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_reported_log_probabilities_are_those_of_scoring(kind, temperature):
    lm = model(kind)
    drawn = draw(lm, temperature=temperature)
    scored = completion_logps(lm, drawn.tokens, temperature=temperature)
    torch.testing.assert_close(drawn.logps, scored.detach(), rtol=0, atol=1e-5)
    assert drawn.logps.std() > 0.5
    assert torch.equal(drawn.log_z, torch.zeros(12))
    lengths = drawn.tokens.completion_mask.sum(1)
    assert lengths.min() < lengths.max() <= 6


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_mixture_is_decoded_as_the_mixture_of_both_on_the_same_prefix(kind):
    policy = mixture(kind)
    drawn = draw(policy, temperature=0.8)
    # By hand, one row at a time, from the models' own logits on the whole prefix without any cache.
    for row in range(12):
        ids = drawn.tokens.input_ids[row : row + 1, : int(drawn.tokens.attention_mask[row].sum())]
        logp, log_z = 0.0, 0.0
        with torch.no_grad():
            factors = [torch.log_softmax(n.model(ids).logits[0] / 0.8, -1) for n in policy.networks]
        mixed = 0.7 * factors[0] + 0.3 * factors[1]
        for t in drawn.tokens.completion_mask[row].nonzero().flatten().tolist():
            z = torch.logsumexp(mixed[t - 1], 0)
            logp += (mixed[t - 1, ids[0, t]] - z).item()
            log_z += z.item()
        assert abs(drawn.logps[row].item() - logp) < 1e-5
        assert abs(drawn.log_z[row].item() - log_z) < 1e-5
    assert drawn.log_z.max() < -1e-3
    again = mixture_logps(policy, drawn.tokens, temperature=0.8)
    torch.testing.assert_close(again, (drawn.logps, drawn.log_z), rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", [model(), mixture()], ids=["network", "mixture"])
def test_a_completion_depends_on_its_numbers_alone(policy):
    uniforms = torch.rand((12, 6), generator=torch.Generator().manual_seed(1))
    together = sample(policy, ENCODER, PROMPTS, 3, max_new_tokens=6, uniforms=uniforms)
    for b, prompt in enumerate(PROMPTS):
        for k in range(3):
            row = 3 * b + k
            alone = sample(policy, ENCODER, [prompt], 1, max_new_tokens=6, uniforms=uniforms[row : row + 1])
            assert alone.texts[0][0] == together.texts[b][k]
            assert abs(alone.logps[0] - together.logps[row]) < 1e-5


def enumerate_responses(policy, length):
    """Every completion of up to `length` tokens with its log-probability."""
    end, V = ENCODER.end_id, len(TOKENIZER)
    prompt = ENCODER.encode_prompt("a b")
    found = []
    for n in range(1, length + 1):
        for ids in itertools.product(range(V), repeat=n):
            if end in ids[:-1] or (n < length and ids[-1] != end):
                continue
            found.append(ids)
    rows = [type(prompt)([*prompt.ids, *ids], prompt.start) for ids in found]
    return found, *mixture_logps(policy, collate(rows, ENCODER.pad_id))


def test_frequencies_are_probabilities():
    policy = mixture()
    found, logps, _ = enumerate_responses(policy, 2)
    p = logps.double().exp().numpy()
    assert abs(p.sum() - 1.0) < 1e-5
    N = 20_000
    drawn = draw(policy, ["a b"], N, max_new_tokens=2)
    places = {ids: i for i, ids in enumerate(found)}
    counts = np.zeros(len(found))
    for ids, mask in zip(drawn.tokens.input_ids, drawn.tokens.completion_mask, strict=True):
        counts[places[tuple(ids[mask].tolist())]] += 1
    often = N * p > 5
    chi2 = ((counts - N * p)[often] ** 2 / (N * p)[often]).sum()
    freedom = often.sum()
    assert freedom > 20
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("policy", [model(), mixture()], ids=["network", "mixture"])
def test_codes_share_the_unit_interval_by_probability(policy):
    """Of N codes at equal distances each completion has N times its probability, up to one code."""
    found, logps, _ = enumerate_responses(policy, 3)
    N = 5_000
    codes = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    uniforms = torch.rand((N, 3), generator=torch.Generator().manual_seed(0))
    drawn = sample(policy, ENCODER, ["a b"], N, max_new_tokens=3, uniforms=uniforms, codes=codes)
    counts = dict.fromkeys(found, 0)
    for ids, mask in zip(drawn.tokens.input_ids, drawn.tokens.completion_mask, strict=True):
        counts[tuple(ids[mask].tolist())] += 1
    np.testing.assert_allclose(list(counts.values()), N * logps.double().exp(), rtol=0, atol=1.01)


def test_uniform_numbers_decide_where_a_code_has_no_more_digits():
    lm, T = model(noise=0.0), 40  # about three binary digits a token
    uniforms = torch.rand((200, T), generator=torch.Generator().manual_seed(0))
    codes = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sample(lm, ENCODER, ["a"], 200, max_new_tokens=T, uniforms=uniforms, codes=codes)
    longest = drawn.tokens.completion_mask.sum(dim=1).argmax()
    again = sample(
        lm, ENCODER, ["a"], 200, max_new_tokens=T, uniforms=uniforms, codes=codes[longest].expand(200)
    )
    tokens = again.tokens.input_ids[:, again.tokens.completion_mask[0]]
    same = (tokens == tokens[0]).all(dim=0)
    assert same[:8].all()
    assert not same[12:].any()


def test_importance_weights_lead_to_the_mixture_of_whole_responses():
    policy = mixture()
    _, logps, log_z = enumerate_responses(policy, 3)
    first, second = (enumerate_responses(Mixture([network], [1.0]), 3)[1] for network in policy.networks)
    whole = torch.softmax(0.7 * first + 0.3 * second, 0)
    weighted = torch.softmax(logps + log_z, 0)
    torch.testing.assert_close(weighted, whole, rtol=0, atol=1e-6)
    assert (logps.exp() - whole).abs().sum() > 1e-2  # the two mixtures are not the same policy


def test_the_most_likely_token_is_always_drawn_with_top_1():
    lm = model()
    drawn = draw(lm, top_k=1)
    assert torch.equal(drawn.logps, torch.zeros(12))
    with torch.no_grad():
        best = lm(drawn.tokens.input_ids, attention_mask=drawn.tokens.attention_mask).logits.argmax(-1)
    chosen = drawn.tokens.completion_mask[:, 1:]
    assert torch.equal(best[:, :-1][chosen], drawn.tokens.input_ids[:, 1:][chosen])


def test_top_k_renormalises():
    lm = model()
    drawn = draw(lm, top_k=3)
    again, _ = mixture_logps(lm, drawn.tokens, top_k=3)
    torch.testing.assert_close(drawn.logps, again, rtol=0, atol=1e-5)
    assert (drawn.logps >= completion_logps(lm, drawn.tokens)).all()
    assert torch.isinf(mixture_logps(lm, draw(lm, count=20).tokens, top_k=1)[0]).any()


def test_room_is_left_and_the_model_is_as_it_was():
    lm = model().train()
    encoder = Encoder(TOKENIZER, max_length=8)
    drawn = sample(
        lm, encoder, ["a b " * 10], 2, max_new_tokens=6, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.tokens.input_ids.shape[1] <= 8
    assert lm.training
    assert all(weight.grad is None for weight in lm.parameters())
    assert token_logps(lm, drawn.tokens).requires_grad


def test_mistakes():
    lm, generator = model(), torch.Generator()
    for prompts, count, options, message in (
        ([], 1, {}, "0 prompts"),
        (["a"], 0, {}, "count = 0"),
        (["a"], 1, {"max_new_tokens": 0}, "max_new_tokens = 0"),
        (["a"], 1, {"top_k": 0}, "top_k = 0"),
        (["a"], 1, {"temperature": 0.0}, "temperature = 0"),
        (["a"], 1, {"generator": None}, "generator or uniforms"),
        (["a"], 1, {"generator": None, "uniforms": torch.rand(1, 5)}, r"\(1, 5\) where \(1, 6\)"),
        (["a"], 1, {"codes": torch.rand(2)}, r"codes: \(2,\) where \(1,\)"),
    ):
        options = {"max_new_tokens": 6, "generator": generator, **options}
        with pytest.raises(ValueError, match=message):
            sample(lm, ENCODER, prompts, count, **options)
    with pytest.raises(ValueError, match="of sum 1"):
        Mixture([Network(lm)], [0.5])
