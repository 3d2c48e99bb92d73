"""Log-probabilities of completions against the naive computation from all logits."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from nashpref.llm import logprobs  # noqa: E402
from nashpref.llm.encoding import Encoded, Tokens, collate  # noqa: E402
from nashpref.llm.inputs import Lora  # noqa: E402
from nashpref.llm.logprobs import (  # noqa: E402
    Reference,
    as_reference,
    check_model,
    completion_logps,
    reference_logps,
    token_logps,
)
from nashpref.llm.shared_prompt import (  # noqa: E402
    can_share_prompts,
    cheapest,
    group_logps,
    pair_logps,
)

torch.set_num_threads(1)
# peft asks transformers 5 for a name that it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
V, PAD = 31, 0
SMALL = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
CONFIGS = {
    "Llama": ("LlamaConfig", SMALL),
    "Qwen2, tied": ("Qwen2Config", {**SMALL, "tie_word_embeddings": True}),
    "GPT-2, tied": ("GPT2Config", GPT2),
    "GPT-J, bias": ("GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "Gemma 2, soft cap": ("Gemma2Config", {**SMALL, "final_logit_softcapping": 0.5}),
    "Cohere, scale": ("CohereConfig", {**SMALL, "logit_scale": 3.0}),
    "Granite, scaling": ("GraniteConfig", {**SMALL, "logits_scaling": 0.2}),
}


def build(name="Llama", dtype=torch.float64, **changes):
    kind, options = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**options, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():  # sharp enough for the logits to matter, biases and all
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    return model


def rows(*lengths, seed=1):
    """Sequences of these (prompt, completion) lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [Encoded(torch.randint(1, V, (p + c,), generator=generator).tolist(), start=p) for p, c in lengths]


ROWS = rows((3, 4), (1, 6), (5, 1), (2, 2))
TOKENS = collate(ROWS, PAD)


def naive(model, tokens, temperature=1.0):
    logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    scores = (logits / temperature).log_softmax(-1)[:, :-1]
    scores = scores.gather(-1, tokens.input_ids[:, 1:, None]).squeeze(-1)
    scores = torch.cat([torch.zeros_like(scores[:, :1]), scores], 1)
    return scores.masked_fill(~tokens.completion_mask.bool(), 0.0)


def gradients(model, scores):
    weights = torch.linspace(-1.0, 2.0, scores.numel(), dtype=scores.dtype).view_as(scores)
    model.zero_grad()
    (scores * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 3 * V, 10**9], ids=["one token", "three tokens", "all"])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_all_gradients_are_those_of_the_full_logits(name, chunk):
    model = build(name)
    check_model(model)
    ours, full = token_logps(model, TOKENS, temperature=0.7, chunk=chunk), naive(model, TOKENS, 0.7)
    torch.testing.assert_close(ours, full, rtol=0.0, atol=1e-12)
    expected, got = gradients(model, full), gradients(model, ours)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-12, atol=1e-12, msg=key)
    torch.testing.assert_close(completion_logps(model, TOKENS, temperature=0.7), full.sum(1))


def test_user_turns_inside_a_completion_do_not_count():
    model = build()
    tokens = collate([Encoded(ROWS[1].ids, start=1, others=(2, 3))], PAD)
    scores = token_logps(model, tokens)
    assert (scores[0] != 0).tolist() == [False, True, False, False, True, True, True]
    torch.testing.assert_close(scores, naive(model, tokens))


def test_gradcheck():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 4, 2, 2])
    function = logprobs._TargetLogProb.apply
    assert torch.autograd.gradcheck(lambda x: function(x, targets, 0.7), logits.requires_grad_())


@pytest.mark.parametrize("name", ["Llama", "GPT-2, tied"])
def test_padding_and_company_change_nothing(name):
    model = build(name, torch.float32)
    together = completion_logps(model, TOKENS)
    alone = torch.cat([completion_logps(model, collate([row], PAD)) for row in ROWS])
    shuffled = completion_logps(model, collate(ROWS[::-1] + rows((4, 9)), PAD))[:4].flip(0)
    left = Tokens(*(torch.stack([x.roll(T) for x, T in zip(t, pads(), strict=True)]) for t in TOKENS))
    assert left.attention_mask[:, -1].all()
    for other in (alone, shuffled, completion_logps(model, left)):
        torch.testing.assert_close(other, together, rtol=0.0, atol=1e-5)


def pads():
    return (TOKENS.attention_mask == 0).sum(dim=1).tolist()


def test_bfloat16_logits_are_reduced_in_float32():
    model = build(dtype=torch.bfloat16)
    logits = model(input_ids=TOKENS.input_ids, attention_mask=TOKENS.attention_mask).logits
    assert logits.dtype == torch.bfloat16
    exact = logits.double().log_softmax(-1)[:, :-1].gather(-1, TOKENS.input_ids[:, 1:, None]).squeeze(-1)
    scores = token_logps(model, TOKENS)
    assert scores.dtype == completion_logps(model, TOKENS).dtype == torch.float32
    counted = TOKENS.completion_mask[:, 1:]
    torch.testing.assert_close(scores[:, 1:][counted].double(), exact[counted], rtol=0.0, atol=2e-6)
    scores.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_autocast_gives_float32_too():
    model = build(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scores = completion_logps(model, TOKENS, chunk=2 * V)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    torch.testing.assert_close(scores, completion_logps(model, TOKENS), rtol=0.02, atol=0.5)


def test_only_completions_go_through_the_head_a_chunk_at_a_time_and_nothing_that_wide_is_kept():
    model, seen, kept = build(), [], []
    model.lm_head.register_forward_hook(lambda _, args, out: seen.append(len(out)))

    def keep(tensor):
        kept.append(tensor.shape[-1] == V and tensor.shape != model.lm_head.weight.shape)
        return tensor

    tokens = int(TOKENS.completion_mask.sum())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = completion_logps(model, TOKENS, chunk=4 * V + 1)
    assert max(seen) == 4
    assert sum(seen) == tokens
    assert not any(kept)
    scores.sum().backward()
    assert sum(seen) == 2 * tokens  # recomputed
    seen.clear()
    completion_logps(model, TOKENS).sum().backward()
    assert seen == [tokens]  # a single chunk is not


# --- the reference ---


def test_the_reference_is_a_frozen_copy_without_dropout():
    model = build("GPT-2, tied", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = completion_logps(model, TOKENS).detach()
    model.train()
    parent = torch.nn.ModuleDict({"policy": model, "reference": Reference(model)}).train()
    with torch.no_grad():
        model.lm_head.weight.add_(1.0 + torch.rand_like(model.lm_head.weight))
    got = parent["reference"](TOKENS)
    assert not got.requires_grad
    assert not any(p.requires_grad for p in parent["reference"].parameters())
    torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
    assert all(module.training for module in model.modules())


def test_reference_log_probabilities_of_a_data_set():
    model = build("GPT-2, tied", resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    got = reference_logps(model, (collate([row], PAD) for row in ROWS), total=4, progress=True)
    assert [module.training for module in model.modules()] == modes
    assert not got.requires_grad
    torch.testing.assert_close(got, completion_logps(model.eval(), TOKENS))
    with pytest.raises(ValueError, match="empty"):
        reference_logps(model, [])


def adapted(model, targets=("q_proj", "lm_head"), **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=list(targets), init_lora_weights=False, **options
    )
    return peft.get_peft_model(model, config)


def test_under_peft_the_reference_is_the_base_exactly_and_nothing_is_copied():
    base = build()
    expected = completion_logps(base, TOKENS).detach()
    model = adapted(copy.deepcopy(base), lora_dropout=0.5).train()
    reference = Reference(model)
    assert not list(reference.parameters())
    paired = Reference(model, pair_logps)(pair_tokens())
    torch.testing.assert_close(paired, completion_logps(base, pair_tokens()), rtol=0.0, atol=1e-11)
    for got in (reference(TOKENS), reference_logps(model, [TOKENS])):
        torch.testing.assert_close(got, expected, rtol=0.0, atol=0.0)
    assert model.training
    assert (completion_logps(model.eval(), TOKENS) - expected).abs().max() > 1e-3  # they are on again


@pytest.mark.parametrize("chunk", [2 * V, 10**9])
def test_peft_adapters_are_part_of_the_policy_also_in_the_head(chunk):
    model = adapted(build())
    ours, full = token_logps(model, TOKENS, chunk=chunk), naive(model, TOKENS)
    torch.testing.assert_close(ours, full, rtol=0.0, atol=1e-12)
    for scores in (full, ours):
        model.zero_grad()
        scores.sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        assert any("lm_head" in n for n in grads)
        if scores is full:
            expected = grads
    for n in expected:
        torch.testing.assert_close(grads[n], expected[n], rtol=1e-12, atol=1e-12, msg=n)


def test_a_head_that_peft_saves_whole_is_the_policys_and_its_base_the_references():
    base = build()
    model = adapted(copy.deepcopy(base), ["q_proj"], modules_to_save=["lm_head"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "modules_to_save" in name:
                p.add_(1.0)
    torch.testing.assert_close(token_logps(model, TOKENS), naive(model, TOKENS), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(Reference(model)(TOKENS), completion_logps(base, TOKENS), rtol=0.0, atol=0.0)


def test_modes_come_back_after_an_error():
    model = build().train()
    with pytest.raises(RuntimeError, match="stop"), as_reference(model):
        raise RuntimeError("stop")
    assert all(module.training for module in model.modules())
    assert torch.is_grad_enabled()


# --- bad input ---


def changed(**fields):
    return TOKENS._replace(**fields)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            changed(completion_mask=TOKENS.completion_mask * torch.tensor([[1], [0], [1], [1]])),
            "row 1.*empty",
        ),
        (changed(completion_mask=torch.ones_like(TOKENS.completion_mask)), "row 2.*not attended"),
        (collate(rows((0, 3), (1, 2)), PAD), "row 0.*first token"),
    ],
)
def test_completions_that_cannot_be_scored_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        token_logps(build(), tokens)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=f"temperature = {temperature}"):
        token_logps(build(), TOKENS, temperature=temperature)


def test_gpt2_gives_no_cause_for_warnings(monkeypatch):
    """Neither to transformers, of tokens without a mask, nor to PEFT, of matrices the other way round."""
    pytest.importorskip("peft")
    masks = []
    monkeypatch.setattr(
        transformers.PreTrainedModel,
        "warn_if_padding_and_no_attention_mask",
        lambda self, input_ids, attention_mask: masks.append(attention_mask),
    )
    model = build("GPT-2, tied", pad_token_id=PAD)
    check_model(model)
    completion_logps(Lora(rank=2).adapt(model), TOKENS)
    assert masks
    assert all(mask is not None for mask in masks)


def test_models_that_are_not_supported_are_refused():
    with pytest.raises(ValueError, match="no head over the vocabulary"):
        token_logps(build().model, TOKENS)
    with pytest.raises(ValueError, match="causal language model"):
        token_logps(torch.nn.Linear(2, 2), TOKENS)
    t5 = transformers.T5Config(vocab_size=V, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="no causal language model"):
        token_logps(transformers.T5ForConditionalGeneration(t5), TOKENS)
    bert = transformers.BertConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    bert.is_decoder = True  # its head has a layer that get_output_embeddings leaves out
    with pytest.raises(ValueError, match="BertLMHeadModel does more to its logits"):
        check_model(transformers.BertLMHeadModel(bert))
    with pytest.raises(ValueError, match="does more to its logits"):
        Reference(transformers.BertLMHeadModel(bert))
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="prompt tuning"):
        token_logps(peft.get_peft_model(build(), config), TOKENS)


def test_data_parallel_gradients_are_never_lost_silently():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(build())
        with pytest.raises(ValueError, match="would not exchange"):
            completion_logps(model, TOKENS)
        with torch.no_grad():
            got = completion_logps(model, TOKENS)
        torch.testing.assert_close(got, completion_logps(model.module, TOKENS))
    finally:
        distributed.destroy_process_group()


# --- pairs that share their prompt ---


def pair_tokens():
    """Prompts of 3, 1 and 5 tokens; completions of different lengths, one with a user's turn in it."""
    chosen, rejected = rows((3, 4), (1, 6), (5, 2), seed=4), rows((3, 5), (1, 1), (5, 3), seed=5)
    rejected = [
        Encoded([*c.ids[: c.start], *r.ids[c.start :]], c.start, (6,) if c.start == 3 else ())
        for c, r in zip(chosen, rejected, strict=True)
    ]
    return collate([*chosen, *rejected], PAD)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["Llama", "Qwen2, tied", "GPT-2, tied", "Granite, scaling"])
def test_one_pass_over_the_prompt_gives_the_same_values_and_gradients(name, attention):
    model, tokens = build(name, attn_implementation=attention), pair_tokens()
    assert can_share_prompts(model)
    apart = completion_logps(model, tokens, temperature=0.7)
    shared = pair_logps(model, tokens, temperature=0.7, chunk=4 * V)
    torch.testing.assert_close(shared, apart, rtol=0.0, atol=1e-11)
    expected, got = gradients(model, apart), gradients(model, shared)
    # RMS norms and the softmax of eager attention round gradients to float32, for the prompt once or twice.
    tolerance = 1e-11 if (name, attention) == ("GPT-2, tied", "sdpa") else 1e-6
    for key in expected:
        assert (got[key] - expected[key]).abs().max() < tolerance * expected[key].abs().max(), key


def test_shared_prompts_under_autocast_and_peft():
    model, tokens = adapted(build(dtype=torch.float32)), pair_tokens()
    assert can_share_prompts(model)
    exact = completion_logps(model, tokens)
    torch.testing.assert_close(pair_logps(model, tokens), exact, rtol=1e-5, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pair_logps(model, tokens)
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.5)


def group_tokens(K):
    """Prompts of 3, 1 and 6 tokens with K completions each, of 1 to 5 tokens."""
    grouped = []
    for start, first in ((3, 0), (1, 20), (6, 40)):
        group = rows(*((start, 1 + (start + k) % 5) for k in range(K)), seed=first)
        grouped += [Encoded([*group[0].ids[:start], *each.ids[start:]], start) for each in group]
    return collate(grouped, PAD)


@pytest.mark.parametrize("K", [1, 2, 5])
def test_one_pass_over_the_prompt_of_many_completions(K):
    model, tokens = build("GPT-2, tied"), group_tokens(K)
    apart = completion_logps(model, tokens, temperature=0.7)
    shared = group_logps(model, tokens, K, temperature=0.7)
    torch.testing.assert_close(shared, apart, rtol=0.0, atol=1e-11)
    expected, got = gradients(model, apart), gradients(model, shared)
    for key in expected:
        assert (got[key] - expected[key]).abs().max() < 1e-11 * expected[key].abs().max(), key
    with pytest.raises(ValueError, match=f"{3 * K} rows: 7 of each prompt"):
        group_logps(model, tokens, 7)


def test_long_prompts_are_shared_by_more():
    model = build()

    def tokens(P, R):
        mask = torch.arange(P + R).expand(12, -1) >= P
        return Tokens(torch.zeros_like(mask, dtype=torch.int64), torch.ones_like(mask), mask)

    found = [cheapest(model, tokens(P, R), 12) for P, R in ((1, 400), (40, 20), (400, 2))]
    assert found[0] == 1
    assert 1 < found[1] < found[2] == 12


def test_models_that_cannot_share_prompts_say_so():
    assert not can_share_prompts(build("Gemma 2, soft cap"))  # sliding windows in every other layer
    mistral = transformers.MistralConfig(**SMALL, sliding_window=4)
    assert not can_share_prompts(transformers.AutoModelForCausalLM.from_config(mistral))
    bloom = transformers.BloomConfig(vocab_size=V, hidden_size=16, n_layer=1, n_head=2)
    assert not can_share_prompts(transformers.AutoModelForCausalLM.from_config(bloom))


def test_pairs_that_are_none_are_named():
    model, tokens = build(), pair_tokens()
    with pytest.raises(ValueError, match="5 rows"):
        pair_logps(model, Tokens(*(t[:5] for t in tokens)))
    other = tokens.input_ids.clone()
    other[5, 4] += 1
    with pytest.raises(ValueError, match="pair 2: the prompts differ"):
        pair_logps(model, tokens._replace(input_ids=other))
    later = tokens.completion_mask.clone()
    later[1, 1] = False
    with pytest.raises(ValueError, match="pair 1: the prompts differ"):
        pair_logps(model, tokens._replace(completion_mask=later))
    left = Tokens(*(t.flip(1) for t in tokens))._replace(completion_mask=tokens.attention_mask.flip(1) > 0)
    left.completion_mask[:, :-1] = False
    with pytest.raises(ValueError, match="padded on the left"):
        pair_logps(model, left)
