"""The DPO family's objective: one pass over each prompt where that is the same, and models it can trust."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator

from nashpref.llm import losses, objectives
from nashpref.llm.data import Pair
from nashpref.llm.encoding import Encoder, collate_pairs, encode_pairs
from nashpref.llm.logprobs import Reference, completion_logps
from nashpref.llm.objectives import (
    Demonstrations,
    PolicyPairs,
    collate_referenced,
    pair_score,
    with_reference,
)
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.shared_prompt import pair_logps

TOKENIZER = tiny_tokenizer(["a b c d e f"])
ENCODER = Encoder(TOKENIZER)
PAIRS = [Pair("a b c d", "e f a", "b"), Pair("f", "a", "b c d e f"), Pair("c c c", "d d", "e e")]
DPO = partial(losses.dpo, beta=0.5)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def policy(kind="llama", seed=0):
    return tiny_causal_lm(TOKENIZER, layers=2, width=32, kind=kind, seed=seed)


def moved(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    return model


def gradients(objective, batch):
    objective.zero_grad()
    objective(batch)["loss"].mean().backward()
    return {name: p.grad for name, p in objective.model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_pass_over_the_prompts_gives_the_numbers_of_two(kind, monkeypatch):
    model = policy(kind)
    assert pair_score(model) is pair_logps
    encoded = encode_pairs(ENCODER, PAIRS)
    examples = with_reference(model, encoded, ENCODER.pad_id, Accelerator(cpu=True))
    batch = collate_referenced(examples, ENCODER.pad_id)
    torch.testing.assert_close(batch.reference, completion_logps(model, batch.pairs.tokens).detach())
    reference = Reference(model, pair_score(model))
    objective = PolicyPairs(moved(model), DPO)
    one_pass = objective(batch), gradients(objective, batch)
    copied = PolicyPairs(model, DPO, reference)(batch.pairs)
    monkeypatch.setattr(objectives, "can_share_prompts", lambda model: False)
    apart = PolicyPairs(model, DPO)
    assert pair_score(model) is completion_logps
    two_passes = apart(batch), gradients(apart, batch)
    for name, value in two_passes[0].items():
        torch.testing.assert_close(one_pass[0][name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(copied[name], value, rtol=1e-4, atol=1e-5)
    assert two_passes[0]["margin"].abs().min() > 1e-3
    for name, gradient in two_passes[1].items():
        torch.testing.assert_close(one_pass[1][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_under_autocast_it_is_as_near_as_bfloat16_allows(attention):
    model = moved(policy())
    model.set_attn_implementation(attention)
    objective = PolicyPairs(model, DPO, Reference(policy()))
    batch = collate_pairs(encode_pairs(ENCODER, PAIRS), ENCODER.pad_id)
    exact = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch)
    assert objective._score is pair_logps
    torch.testing.assert_close(rough["logps_chosen"], exact["logps_chosen"], rtol=0.02, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(gradient.isfinite().all() for gradient in gradients(objective, batch).values())


@pytest.mark.parametrize("objective", [Demonstrations, lambda model: PolicyPairs(model, DPO)])
def test_a_model_whose_logits_are_not_its_heads_is_refused(objective):
    model = policy()
    forward = model.forward

    def doubled(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = 2.0 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(ValueError, match="does more to its logits than its head does"):
        objective(model)
