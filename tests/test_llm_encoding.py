"""Encoding: what is trained on is what would be sampled; batches that can be taken up again."""

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nashpref.llm.batching import LengthBuckets, padding
from nashpref.llm.data import Demonstration, Pair
from nashpref.llm.encoding import (
    Encoded,
    EncodedPair,
    Encoder,
    collate,
    collate_pairs,
    encode_demonstrations,
    encode_pairs,
    truncation,
)
from nashpref.llm.playground import SPECIAL, tiny_causal_lm, tiny_tokenizer

WORDS = tiny_tokenizer(["a b c d e f g h"])
CHARACTERS = tiny_tokenizer(["abcdefgh \n"], level="character")
SUBWORDS = tiny_tokenizer(["the cat and the dog and the hen"], level="subword", size=300)
PAD, BOS, EOS, UNK, SYSTEM, USER, ASSISTANT = range(len(SPECIAL))
TOKENIZERS = [WORDS, CHARACTERS, SUBWORDS]


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def own_text(encoder: Encoder, encoded: Encoded) -> str:
    """What the completion mask covers, as text."""
    tokens = collate([encoded], encoder.pad_id)
    return str(encoder.tokenizer.decode(tokens.input_ids[0][tokens.completion_mask[0]]))


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(["abcdefgh \n<>/thinkyou"], level="character")
    tokenizer.chat_template = template
    return tokenizer


# --- plain text ---


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_plain_text_is_prompt_completion_end(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = Encoder(tokenizer).encode("a b", " c")
    prompt = ids(tokenizer, "a b")
    assert list(encoded.ids) == [*prompt, *ids(tokenizer, " c"), EOS]
    assert (encoded.start, encoded.others, encoded.dropped, encoded.cut) == (len(prompt), (), 0, 0)
    assert list(Encoder(tokenizer).encode_prompt("a b").ids) == prompt


@given(prompt=st.text("abcdefgh \n"), completion=st.text("abcdefgh \n"))
def test_no_text_is_lost_or_moved_between_prompt_and_completion(prompt: str, completion: str) -> None:
    for tokenizer in (CHARACTERS, SUBWORDS):
        encoder = Encoder(tokenizer)
        encoded = encoder.encode(prompt, completion)
        front = [] if prompt else [BOS]  # the first token of a completion must follow something
        assert (
            tokenizer.decode(encoded.ids) == "".join(["<bos>"] * len(front)) + prompt + completion + "<eos>"
        )
        assert list(encoded.ids[: encoded.start]) == [*front, *ids(tokenizer, prompt)]
        assert own_text(encoder, encoded) == completion + "<eos>"
        assert encoded.ids[: encoded.start] == encoder.encode_prompt(prompt).ids


def test_a_token_that_straddles_the_boundary_is_split_there() -> None:
    encoder = Encoder(SUBWORDS)
    joint, (t, he) = ids(SUBWORDS, "the"), (ids(SUBWORDS, "t"), ids(SUBWORDS, "he"))
    assert joint != t + he
    assert list(encoder.encode("t", "he").ids) == [*t, *he, EOS]


def test_a_completion_takes_the_tokens_it_has_after_its_prompt() -> None:
    """A sentencepiece-like tokenizer marks the beginning of a text, which a completion is not."""
    vocabulary = {"▁a": 0, "b": 1, "▁b": 2, "</s>": 3, "<unk>": 4, "<s>": 5}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("b", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    assert ids(tokenizer, "ab") == [0, 1]
    assert ids(tokenizer, "b") != [1]
    assert list(Encoder(tokenizer).encode("a", "b").ids) == [0, 1, 3]


def test_what_the_tokenizer_puts_before_any_text_comes_first() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(["a b"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<bos> $A <eos>", None, [("<bos>", BOS), ("<eos>", EOS)]
    )
    a, b = ids(tokenizer, "a b")
    assert tokenizer("a").input_ids == [BOS, a, EOS]
    encoded = Encoder(tokenizer).encode("a", "b")
    assert (list(encoded.ids), encoded.start) == ([BOS, a, b, EOS], 2)
    assert list(Encoder(tokenizer).encode("", "b").ids) == [BOS, b, EOS]


def test_tokenizers_with_other_special_tokens() -> None:
    bert = tiny_tokenizer(["a b"])
    for name in ("eos_token", "bos_token", "pad_token"):
        setattr(bert, name, None)
    with pytest.raises(ValueError, match=r"no end-of-sequence token: set tokenizer\.eos_token"):
        Encoder(bert)
    bert.add_special_tokens({"cls_token": "<bos>", "sep_token": "<eos>"})
    encoder = Encoder(bert)
    assert list(encoder.encode("", "a").ids) == [BOS, *ids(bert, "a"), EOS]
    assert encoder.pad_id == EOS
    neither = tiny_tokenizer(["a b"])
    neither.bos_token = None
    assert list(Encoder(neither).encode("", "a").ids) == [EOS, *ids(neither, "a"), EOS]


# --- chats ---


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_chat_is_rendered_by_the_template_and_masked_up_to_the_end_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = Encoder(tokenizer)
    prompt = [message("system", "a"), message("user", "b c")]
    encoded = encoder.encode(prompt, [message("assistant", "d e")])
    expected = [BOS, SYSTEM, *ids(tokenizer, "a"), EOS, USER, *ids(tokenizer, "b c"), EOS, ASSISTANT]
    assert list(encoded.ids[: encoded.start]) == expected
    assert list(encoded.ids[encoded.start :]) == [*ids(tokenizer, "d e"), EOS]
    assert encoder.encode(prompt, "d e") == encoded
    assert encoder.encode_prompt(prompt).ids == encoded.ids[: encoded.start]


@given(contents=st.lists(st.text("abc ", min_size=1, max_size=5), min_size=2, max_size=8))
def test_no_token_of_a_user_is_ever_in_the_mask(contents: list[str]) -> None:
    roles = ["user", "assistant"] * 4
    chat = [message(role, content) for role, content in zip(roles, contents, strict=False)]
    chat = chat[: len(chat) // 2 * 2]
    encoder = Encoder(CHARACTERS)
    encoded = encoder.encode(chat[:1], chat[1:])
    assert own_text(encoder, encoded) == "".join(m["content"] + "<eos>" for m in chat[1::2])
    rendered = CHARACTERS.apply_chat_template(chat, tokenize=False)
    assert CHARACTERS.decode(encoded.ids) == rendered
    for limit in range(2, len(encoded) + 1):  # and truncation moves the mask with its tokens
        short = Encoder(CHARACTERS, limit).encode(chat[:1], chat[1:])
        own = [short.ids[i] for i in range(short.start, len(short)) if i not in short.others]
        whole = [encoded.ids[i] for i in range(encoded.start, len(encoded)) if i not in encoded.others]
        assert own == whole[: len(own)]
        assert ids(CHARACTERS, own_text(Encoder(CHARACTERS), short)) == own
        assert len(short) == limit


NEWLINES = "{% for m in messages %}{{ '<' + m['role'] + '>\n' + m['content'] + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"  # noqa: E501
UNENDED = (
    "{% for m in messages %}{{ m['role'][0] + m['content'] }}{% endfor %}{{ 'a' if add_generation_prompt }}"
)
THINKING = "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% if open %}<think>{% endif %}{% endif %}"  # noqa: E501


def test_what_a_template_adds_after_the_end_token_is_not_the_policys() -> None:
    tokenizer = with_template(NEWLINES)
    encoder = Encoder(tokenizer)
    encoded = encoder.encode([message("user", "a")], [message("assistant", "\nb")])
    assert tokenizer.decode(encoded.ids) == "<user>\na<eos>\n<assistant>\n\nb<eos>"
    assert own_text(encoder, encoded) == "\nb<eos>"
    more = [message("assistant", "b"), message("user", "c"), message("assistant", "d")]
    encoded = encoder.encode([message("user", "a")], more)
    assert tokenizer.decode(encoded.ids).endswith("\nb<eos>\n<user>\nc<eos>\n<assistant>\nd<eos>")
    assert own_text(encoder, encoded) == "b<eos>d<eos>"


def test_a_template_without_an_end_gets_one() -> None:
    encoder = Encoder(with_template(UNENDED))
    for content in ("b", ""):
        encoded = encoder.encode([message("user", "c")], content)
        assert encoder.tokenizer.decode(encoded.ids) == f"uca{content}<eos>"


def test_a_template_that_rewrites_what_it_wrote_is_refused() -> None:
    tokenizer = with_template(THINKING)
    encoder, prompt, turn = Encoder(tokenizer), [message("user", "a")], message("assistant", "b")
    assert own_text(encoder, encoder.encode(prompt, [turn])) == "<think></think>b<eos>"
    with pytest.raises(
        ValueError, match=r"renders the beginning of a chat differently once more follows \('<think></think>b"
    ):
        encoder.encode(prompt, [turn, message("user", "c"), turn])
    other = tokenizer.chat_template.replace("<think></think>", "")
    tokenizer.chat_template = other
    with pytest.raises(
        ValueError, match=r"\('<think>' becomes 'b<eos>' after \d+ characters\).*template_options"
    ):
        Encoder(tokenizer, template_options={"open": True}).encode(prompt, [turn])
    Encoder(tokenizer, template_options={"open": False}).encode(prompt, [turn])


def test_chats_that_cannot_be_encoded_say_why() -> None:
    encoder = Encoder(CHARACTERS)
    user, turn = message("user", "a"), message("assistant", "b")
    with pytest.raises(ValueError, match="the prompt is text and the completion messages"):
        encoder.encode("a", [turn])
    for completion in ([], [turn, user]):
        with pytest.raises(ValueError, match="must end with a message of the assistant"):
            encoder.encode([user], completion)
    with pytest.raises(
        ValueError, match=r"no chat template: set tokenizer\.chat_template, or give .* plain text"
    ):
        Encoder(with_template("")).encode([user], [turn])
    picky = with_template("{{ raise_exception('no users') }}")
    with pytest.raises(ValueError, match="template refuses messages of user: no users"):
        Encoder(picky).encode([user], [turn])
    records = [Demonstration("a", "b"), Demonstration("a", [turn])]
    with pytest.raises(ValueError, match=r"^records\[1\]: the prompt is text"):
        encode_demonstrations(encoder, records)
    assert encode_demonstrations(encoder, records[:1]) == [encoder.encode("a", "b")]


# --- truncation ---


@given(prompt=st.text("abc", max_size=9), completion=st.text("abc", max_size=9), limit=st.integers(2, 20))
def test_truncation_keeps_the_completion_and_the_newest_of_the_prompt(
    prompt: str, completion: str, limit: int
) -> None:
    encoder = Encoder(CHARACTERS, limit)
    encoded = encoder.encode(prompt, completion)
    given, said = prompt or "<bos>", f"{completion}<eos>"
    full = (len(prompt) or 1) + len(completion) + 1
    assert len(encoded) == min(limit, full)
    assert encoded.dropped + encoded.cut == full - len(encoded)
    assert encoded.start >= 1
    assert encoded.cut == max(0, len(completion) + 1 - (limit - 1))  # only where one prompt token is left
    assert given.endswith(CHARACTERS.decode(encoded.ids[: encoded.start]))
    assert said.startswith(own_text(encoder, encoded))
    assert len(encoder.encode_prompt(prompt).ids) == min(limit - 1, len(prompt) or 1)


def test_both_completions_of_a_pair_follow_the_same_prompt_tokens() -> None:
    encoder = Encoder(CHARACTERS, 6)
    pair = encoder.encode_pair(Pair("abcd", "ef", "g", 0.75, 2.0))
    texts = [CHARACTERS.decode(e.ids) for e in (pair.chosen, pair.rejected)]
    assert texts == ["bcdef<eos>", "bcdg<eos>"]
    assert (pair.chosen.start, pair.rejected.start, pair.p_chosen, pair.margin, len(pair)) == (
        3,
        3,
        0.75,
        2.0,
        6,
    )
    long = encoder.encode_pair(Pair("abcd", "aaaaaaaa", "g"))
    assert [CHARACTERS.decode(e.ids) for e in (long.chosen, long.rejected)] == ["daaaaa", "dg<eos>"]
    assert truncation([pair, long, encoder.encode("a", "b")]) == (5, 4, 1 + 1 + 3 + 3, 1, 4)
    with pytest.raises(ValueError, match=r"^records\[0\]: the prompt is text"):
        encode_pairs(encoder, [Pair("a", [message("assistant", "b")], "c")])


def test_a_token_that_begins_the_sequence_is_kept_in_front() -> None:
    chat = [message("user", "abcd")]
    encoded = Encoder(CHARACTERS, 6).encode(chat, "ef")
    assert CHARACTERS.decode(encoded.ids) == "<bos><eos><assistant>ef<eos>"
    assert encoded.dropped == 5
    assert CHARACTERS.decode(Encoder(CHARACTERS, 4).encode(chat, "ef").ids) == "<assistant>ef<eos>"
    assert (
        CHARACTERS.decode(Encoder(CHARACTERS, 6).encode_prompt(chat, room=3).ids) == "<bos><eos><assistant>"
    )
    with pytest.raises(ValueError, match=r"room = 6: max_length = 6 leaves no token"):
        Encoder(CHARACTERS, 6).encode_prompt(chat, room=6)
    with pytest.raises(ValueError, match="max_length = 1: room for"):
        Encoder(CHARACTERS, 1)


# --- batches of tokens ---


def test_a_batch_is_padded_on_the_right_whatever_the_tokenizer_prefers() -> None:
    batches = []
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer(["abcdef"], level="character")
        tokenizer.padding_side = tokenizer.truncation_side = side
        encoder = Encoder(tokenizer, 5)
        batches.append(collate([encoder.encode("a", "b"), encoder.encode("abc", "def")], encoder.pad_id))
    tokens, other = batches
    assert all(torch.equal(a, b) for a, b in zip(tokens, other, strict=True))
    a, b, c, d, e, f = ids(CHARACTERS, "abcdef")
    shift = ids(tiny_tokenizer(["abcdef"], level="character"), "a")[0] - a
    assert tokens.input_ids.tolist() == [
        [a + shift, b + shift, EOS, PAD, PAD],
        [c + shift, d + shift, e + shift, f + shift, EOS],
    ]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert tokens.completion_mask.tolist() == [
        [False, True, True, False, False],
        [False, True, True, True, True],
    ]
    assert [t.dtype for t in tokens] == [torch.int64, torch.int64, torch.bool]
    moved = tokens.to("cpu")
    assert type(moved) is type(tokens)
    assert torch.equal(moved.input_ids, tokens.input_ids)


def test_a_batch_of_pairs_is_the_chosen_and_then_the_rejected() -> None:
    pairs = [
        EncodedPair(Encoded([1, 2], 1), Encoded([1, 3, 4], 1), 0.25, 1.5),
        EncodedPair(Encoded([5, 6, 7, 8], 2, (3,)), Encoded([5, 9], 1)),
    ]
    batch = collate_pairs(pairs, 0).to("cpu")
    assert batch.tokens.input_ids.tolist() == [[1, 2, 0, 0], [5, 6, 7, 8], [1, 3, 4, 0], [5, 9, 0, 0]]
    assert batch.tokens.completion_mask.int().tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 1, 1, 0],
        [0, 1, 0, 0],
    ]
    assert (batch.p_chosen.tolist(), batch.margin.tolist()) == ([0.25, 1.0], [1.5, 0.0])


# --- which examples share a batch ---


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    size=st.integers(1, 9),
    bucket=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_every_example_comes_once_an_epoch_in_batches_of_like_size(
    lengths: list[int], size: int, bucket: int, seed: int
) -> None:
    batches = LengthBuckets(lengths, size, seed=seed, bucket=bucket)
    for epoch in range(2):
        assert (batches.epoch, batches.cursor) == (epoch, 0)
        drawn = list(batches)
        assert sorted(i for batch in drawn for i in batch) == list(range(len(lengths)))
        assert len(drawn) == len(batches) == -(-len(lengths) // size)
        sizes = {len(batch) for batch in drawn}
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        for batch in drawn:
            assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    size=st.integers(1, 9),
    stop=st.integers(0, 60),
)
def test_a_saved_state_goes_on_with_exactly_the_next_batch(lengths: list[int], size: int, stop: int) -> None:
    def endless(batches: LengthBuckets) -> Any:
        while True:
            yield from batches

    first = LengthBuckets(lengths, size, seed=3, bucket=2)
    whole = list(islice(endless(LengthBuckets(lengths, size, seed=3, bucket=2)), stop + 20))
    assert list(islice(endless(first), stop)) == whole[:stop]
    state = json.loads(json.dumps(first.state_dict()))
    again = LengthBuckets(lengths, size, seed=3, bucket=2)
    again.load_state_dict(state)
    assert again.state_dict() == first.state_dict()
    assert list(islice(endless(again), 20)) == whole[stop:]


def test_orders_differ_between_epochs_and_seeds_and_batches_between_epochs() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 400).tolist()
    batches = LengthBuckets(lengths, 8, seed=1)
    first, second, other = list(batches), list(batches), list(LengthBuckets(lengths, 8, seed=2))
    assert len({str(order) for order in (first, second, other)}) == 3
    assert not {frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}
    assert list(LengthBuckets(lengths, 8, seed=1)) == first
    longest = [lengths[batch[-1]] for batch in first]  # no curriculum from short to long
    assert abs(float(np.corrcoef(longest, range(len(longest)))[0, 1])) < 0.4


def test_a_state_of_other_data_or_options_is_refused() -> None:
    state = LengthBuckets([1, 2, 3], 2, seed=0).state_dict()
    for other, name in (
        (LengthBuckets([1, 2, 3], 2, seed=1), "seed"),
        (LengthBuckets([1, 2, 3], 3), "batch_size"),
        (LengthBuckets([1, 2, 3], 2, bucket=4), "bucket"),
        (LengthBuckets([1, 2, 3, 4], 2), "examples"),
        (LengthBuckets([1, 2, 4], 2), "tokens"),
    ):
        with pytest.raises(ValueError, match=f"cannot be taken up again: {name} was"):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="no examples to batch"):
        LengthBuckets([], 2)
    for size, bucket, name in ((0, 1, "batch_size"), (1, 0, "bucket")):
        with pytest.raises(ValueError, match=f"{name} = 0: it must be at least 1"):
            LengthBuckets([1], size, bucket=bucket)


def test_the_shares_of_the_processes_are_the_batch_and_alike_in_length() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 640).astype(int).tolist()
    for batch in LengthBuckets(lengths, 16):
        shares = [batch[rank::4] for rank in range(4)]
        assert sorted(i for share in shares for i in share) == sorted(batch)
        tokens = [sum(lengths[i] for i in share) for share in shares]
        assert max(tokens) <= sum(lengths[i] for i in batch) / 4 + max(lengths[i] for i in batch)


def test_buckets_leave_little_padding() -> None:
    """Lengths as of real dialogues: log-normal, a median of 150 tokens, cut at 1024."""
    lengths = np.random.default_rng(0).lognormal(5, 0.8, 4000).astype(int).clip(8, 1024).tolist()
    assert padding([3, 1, 2], [[0, 1], [2]]) == pytest.approx(2 / 8)
    bucketed = padding(lengths, LengthBuckets(lengths, 16))
    shuffled = padding(lengths, LengthBuckets(lengths, 16, bucket=1))
    assert shuffled > 0.5
    assert bucketed < 0.08
    assert (1.0 - shuffled) / (1.0 - bucketed) < 0.55  # positions computed, of those of random batches


# --- the playground's tokenizer and model ---


@given(text=st.text(max_size=30))
def test_subwords_lose_nothing(text: str) -> None:
    assert SUBWORDS.decode(ids(SUBWORDS, text)) == text or any(special in text for special in SPECIAL)


def test_vocabularies_are_those_of_the_texts(tmp_path: Any) -> None:
    assert WORDS.convert_ids_to_tokens(range(len(WORDS))) == [*SPECIAL, *"abcdefgh"]
    assert tiny_tokenizer(["b b a", "c c b"], size=9).get_vocab().keys() == {*SPECIAL, "b", "c"}
    assert tiny_tokenizer(["bb", "ba"], level="character").convert_ids_to_tokens([7, 8]) == ["a", "b"]
    assert CHARACTERS.decode(ids(CHARACTERS, "a\n b")) == "a\n b"
    assert ids(CHARACTERS, "z") == [UNK]
    assert tiny_tokenizer(["b c", "a"]).get_vocab() == tiny_tokenizer(["a", "c b"]).get_vocab()
    for tokenizer in TOKENIZERS:
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert ids(loaded, "a b") == ids(tokenizer, "a b")
        assert loaded.chat_template == tokenizer.chat_template
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (PAD, BOS, EOS)
    with pytest.raises(ValueError, match="texts hold no word"):
        tiny_tokenizer([" ", ""])
    with pytest.raises(ValueError, match="size = 262: 'subword' needs at least 263"):
        tiny_tokenizer(["a"], level="subword", size=262)
    with pytest.raises(ValueError, match="level = 'letter': choose"):
        tiny_tokenizer(["a"], level="letter")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tiny_models_are_a_function_of_their_seed(kind: Any) -> None:
    before = torch.get_rng_state()
    one, same, other = (tiny_causal_lm(WORDS, width=16, layers=1, kind=kind, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    tokens = collate([Encoder(WORDS).encode("a b", "c")], PAD)
    with torch.no_grad():
        logits = [
            m(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
            for m in (one, same, other)
        ]
    assert logits[0].shape == (1, 4, len(WORDS))
    assert logits[0].dtype == torch.float32
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    assert (one.config.eos_token_id, one.config.pad_token_id, one.training) == (EOS, PAD, False)


def test_tiny_models_say_what_they_cannot_be() -> None:
    with pytest.raises(ValueError, match="width = 24: a positive multiple of 16"):
        tiny_causal_lm(WORDS, width=24)
    with pytest.raises(ValueError, match="kind = 'rnn': choose"):
        tiny_causal_lm(WORDS, kind="rnn")  # type: ignore[arg-type]
