"""Preference models: antisymmetry, cycles, matrices, and what is saved is what is loaded."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig

from nashpref.llm.data import Pair
from nashpref.llm.encoding import collate_pairs
from nashpref.llm.objectives import PreferencePairs
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.preferences import (
    BradleyTerryModel,
    GeneralPreferenceModel,
    PairwisePreferenceModel,
    PreferenceConfig,
)

KINDS = [BradleyTerryModel, GeneralPreferenceModel, PairwisePreferenceModel]
WORDS = [*"abcdefgh"]
TOKENIZER = tiny_tokenizer([" ".join(WORDS)])
MESSAGES = [{"role": "user", "content": "a b"}]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def backbone(name="llama", dtype=torch.float32, seed=0):
    """Weights large enough for probabilities to differ."""
    if name == "bert":
        config = BertConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        model = AutoModel.from_config(config)
    else:
        model = tiny_causal_lm(TOKENIZER, layers=1, width=16, kind=name, context=64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model.to(dtype).eval()


def preference(kind, name="llama", dtype=torch.float32, **options):
    options = {"pooling": "mean" if name == "bert" else "last", **options}
    if kind is GeneralPreferenceModel:
        options = {"planes": 2, **options}
    model = kind.from_backbone(backbone(name, dtype), TOKENIZER, **options)
    with torch.no_grad():
        model.head.weight.mul_(40.0)
    return model


def triples(n=24, seed=0):
    rng = np.random.default_rng(seed)
    prompts, a, b = ([" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(n)] for _ in range(3))
    return prompts, a, b


def fit(model, pairs, steps, lr=0.003):
    objective = PreferencePairs(model).train()
    batch = collate_pairs(model.encode_all(pairs), model.encoder.pad_id)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        loss = objective(batch)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_is_loaded_bit_for_bit(kind, name, dtype, tmp_path, caplog):
    options = {"prompt_scales": True} if kind is GeneralPreferenceModel else {}
    model = preference(kind, name, dtype, max_length=40, **options)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    before = model(*triples())
    assert before.std() > 0.01
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not [*tmp_path.glob("*.bin")]
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(loaded(*triples()), before)
    assert loaded.config.max_tokens == 40
    assert not loaded.training
    assert np.array_equal(loaded.matrix("a b", WORDS), model.matrix("a b", WORDS))
    assert "instantiate" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_casting_a_model_keeps_what_is_not_saved(kind, tmp_path):
    model = preference(kind).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(loaded(*triples()), model(*triples()))
    assert model.backbone.rotary_emb.inv_freq.dtype == torch.float32


def test_the_backbone_is_copied():
    body = backbone()
    model = BradleyTerryModel.from_backbone(body, TOKENIZER)
    kept = {name: weight.clone() for name, weight in body.base_model.state_dict().items()}
    assert all(torch.equal(model.backbone.state_dict()[name], weight) for name, weight in kept.items())
    fit(model, [Pair("a", "b", "c")], 2)
    assert all(torch.equal(body.base_model.state_dict()[name], weight) for name, weight in kept.items())


def test_a_backbone_by_its_folder(tmp_path):
    body = backbone(dtype=torch.bfloat16)
    body.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model = BradleyTerryModel.from_backbone(tmp_path)
    assert torch.equal(model.backbone.layers[0].mlp.up_proj.weight, body.model.layers[0].mlp.up_proj.weight)
    assert model.head.weight.dtype == torch.bfloat16
    assert model("a", "b", "c").shape == (1,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_antisymmetric(kind, name, dtype):
    options = {"prompt_scales": True} if kind is GeneralPreferenceModel else {}
    model = preference(kind, name, dtype, **options)
    if options:
        torch.nn.init.normal_(model.prompt_scale.weight)
    prompts, a, b = triples(80)
    p = model(prompts, a, b)
    assert p.dtype == torch.float32
    assert p.std() > 0.01
    # 80 triples make three batches; asked one by one in the other order, only their own numbers play a part
    assert (p + model(prompts, b, a) - 1.0).abs().max() <= 1e-6
    assert torch.equal(model(prompts, a, a), torch.full((80,), 0.5))
    P = model.matrix("a b", a[:9])
    assert np.array_equal(P + P.T, np.ones((9, 9)))
    assert P.std() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_do_not_depend_on_their_batch(kind, name):
    model = preference(kind, name)
    prompts, a, b = triples(70)
    together = model(prompts, a, b)
    alone = torch.cat([model([x], [y], [z]) for x, y, z in zip(prompts, a, b, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_holds_the_pairwise_answers(kind, name):
    options = {"prompt_scales": True} if kind is GeneralPreferenceModel else {}
    model = preference(kind, name, **options)
    if options:
        torch.nn.init.normal_(model.prompt_scale.weight)
    responses = triples(10)[1]  # 90 ordered pairs: more than one batch of the pairwise model
    i, j = np.divmod(np.arange(100), 10)
    asked = model(["a b"] * 100, [responses[k] for k in i], [responses[k] for k in j]).reshape(10, 10)
    np.testing.assert_allclose(model.matrix("a b", responses), asked, rtol=0, atol=2e-6)
    assert np.array_equal(model.matrix("a", ["b"]), [[0.5]])


@pytest.mark.parametrize("kind", KINDS)
def test_chats(kind):
    model = preference(kind)
    answers = [[{"role": "assistant", "content": word}] for word in ("c", "d")]
    chat = model([MESSAGES], answers[:1], answers[1:])
    assert torch.equal(chat, model([MESSAGES], ["c"], ["d"]))
    assert not torch.equal(chat, model(["a b"], ["c"], ["d"]))


CYCLE = [Pair("a", "b", "c"), Pair("a", "c", "d"), Pair("a", "d", "b")]


@pytest.mark.parametrize("kind", [GeneralPreferenceModel, PairwisePreferenceModel])
def test_a_cycle_is_learnt(kind):
    model = kind.from_backbone(backbone(), TOKENIZER)
    fit(model, [Pair(x.prompt, x.chosen, x.rejected, 0.9) for x in CYCLE], 300)
    P = model.matrix("a", ["b", "c", "d"])
    wanted = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    np.testing.assert_allclose(P, wanted, atol=0.02)


def test_one_prompt_turns_the_cycle_round_with_scales_and_embeddings():
    model = GeneralPreferenceModel.from_backbone(backbone(), TOKENIZER, planes=4, prompt_scales=True)
    reverse = [Pair("h", pair.rejected, pair.chosen) for pair in CYCLE]
    fit(model, CYCLE + reverse, 300)
    for prompt, sign in (("a", 1), ("h", -1)):
        P = model.matrix(prompt, ["b", "c", "d"])
        assert all(sign * (P[i, (i + 1) % 3] - 0.5) > 0.2 for i in range(3)), P


def test_no_reward_has_the_cycle():
    model = BradleyTerryModel.from_backbone(backbone(), TOKENIZER)
    loss = fit(model, CYCLE, 100)
    # Σ over a cycle of the logits is 0, so that by convexity no reward is better than none
    assert loss >= np.log(2.0) - 1e-6
    P = model.matrix("a", ["b", "c", "d"])
    assert min(P[0, 1], P[1, 2], P[2, 0]) <= 0.5


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=6),
)
def test_rewards_are_transitive(rewards):
    r = torch.tensor(rewards)[:, None]
    beats = BradleyTerryModel.compare(None, r[:, None], r[None]) > 0.0
    for i, j, k in itertools.permutations(range(len(rewards)), 3):
        assert beats[i, k] or not (beats[i, j] and beats[j, k])


def test_rewards_give_the_probabilities():
    model = preference(BradleyTerryModel)
    prompts, a, b = triples(70)
    difference = model.rewards(prompts, a) - model.rewards(prompts, b)
    torch.testing.assert_close(model(prompts, a, b), torch.sigmoid(difference), rtol=0, atol=2e-6)
    assert model.rewards([], []).shape == (0,)


def test_the_form_of_the_general_model():
    model = preference(GeneralPreferenceModel)
    torch.manual_seed(1)
    a, b = torch.randn(5, 6), torch.randn(5, 6)
    scale = torch.exp((a[:, 4:] + b[:, 4:]) / 2.0)
    R = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    expected = sum(
        scale[:, plane] * torch.einsum("nd,de,ne->n", a[:, [plane, 2 + plane]], R, b[:, [plane, 2 + plane]])
        for plane in range(2)
    )
    torch.testing.assert_close(model.compare(a, b), expected)
    embedding = model.features_of(model.encoder.encode_group("a", ["b", "c"]))[:, :4]
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_prompt_scales_depend_on_the_prompt_alone():
    model = preference(GeneralPreferenceModel, prompt_scales=True)
    torch.nn.init.normal_(model.prompt_scale.weight)

    def scales(prompt, *responses):
        return model.features_of(model.encoder.encode_group(prompt, responses))[:, 4:]

    one, two = scales("a b", "c", "d e f")
    torch.testing.assert_close(one, two)
    assert (scales("a c", "c")[0] - one).abs().min() > 1e-3


def test_dropout_rests_while_preferences_are_asked_for():
    config = BertConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        hidden_dropout_prob=0.5,
    )
    model = BradleyTerryModel.from_backbone(AutoModel.from_config(config), TOKENIZER, pooling="mean").train()
    assert torch.equal(model(*triples()), model(*triples()))
    assert model.training
    assert not model(*triples()).requires_grad


def test_mistakes():
    model = preference(BradleyTerryModel)
    with pytest.raises(ValueError, match="2 prompts, 1 and 1 responses"):
        model(["a", "b"], ["c"], ["d"])
    with pytest.raises(ValueError, match=r"pairs\[1\]: the prompt is text and the completion messages"):
        model(["a", "a"], ["b", [{"role": "assistant", "content": "c"}]], ["d", "d"])
    with pytest.raises(ValueError, match="takes 64; set max_length"):
        model(["a " * 80], ["b"], ["c"])
    assert preference(BradleyTerryModel, max_length=64)(["a " * 80], ["b"], ["c"]).shape == (1,)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        BradleyTerryModel.from_backbone(backbone())
    with pytest.raises(ValueError, match="pooling = 'max'"):
        PreferenceConfig(pooling="max")
    with pytest.raises(ValueError, match="planes = 0"):
        PreferenceConfig(planes=0)
    model.tokenizer = None
    with pytest.raises(ValueError, match=r"set model\.tokenizer"):
        model("a", "b", "c")


def test_weights_that_are_pickled_are_not_read(tmp_path):
    model = preference(BradleyTerryModel)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        BradleyTerryModel.from_pretrained(tmp_path)
