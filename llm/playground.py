"""A tokenizer and a model in milliseconds, with nothing to download: for tests, examples and exact tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES = ("<system>", "<user>", "<assistant>")
SPECIAL = (PAD, BOS, EOS, UNKNOWN, *ROLES)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<' + message['role'] + '>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tiny_tokenizer(
    texts: Iterable[str],
    *,
    level: Literal["word", "character", "subword"] = "word",
    size: int | None = None,
) -> PreTrainedTokenizerFast:
    """A tokenizer of what occurs in `texts`, with `<bos>`, `<eos>`, `<pad>` and a chat template.

    * "word": tokens between white space; decoding joins them by single spaces. What `texts` lacks is `<unk>`.
    * "character": one token per character, the alphabet sorted; `texts` may be the alphabet itself.
    * "subword": byte-level BPE learnt from `texts`; loses nothing of any text.

    A message is rendered as `<role>content<eos>` after one `<bos>`; plain text gets no token added. The
    vocabulary depends on the texts, not on their order or on a seed: special tokens first, then words by
    frequency (ties in alphabetical order), or characters in order.

    Args:
        texts: what to cover, such as the prompts and completions of a task.
        level: what a token is.
        size: the largest vocabulary, special tokens included; None keeps every word or character (for
            "subword", 1024).

    Raises:
        ValueError: an unknown level, a size without room for a single token, or texts without any.
    """
    smallest = len(SPECIAL) + (256 if level == "subword" else 1)
    if size is not None and size < smallest:
        raise ValueError(f"size = {size}: {level!r} needs at least {smallest}, special tokens included")
    if level == "subword":
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=1024 if size is None else size,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    elif level in ("word", "character"):
        counts = Counter(unit for text in texts for unit in (text.split() if level == "word" else text))
        units = sorted(counts.keys() - set(SPECIAL), key=lambda unit: (-counts[unit], unit))
        units = units[: None if size is None else size - len(SPECIAL)]
        if not units:
            raise ValueError(f"texts hold no {level}: give the texts to cover, or an alphabet")
        if level == "character":
            units.sort()
        vocabulary = {unit: i for i, unit in enumerate((*SPECIAL, *units))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        if level == "word":
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
            tokenizer.decoder = decoders.Fuse()
    else:
        raise ValueError(f"level = {level!r}: choose 'word', 'character' or 'subword'")
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_causal_lm(
    tokenizer: PreTrainedTokenizerFast,
    *,
    layers: int = 2,
    width: int = 64,
    kind: Literal["llama", "gpt2"] = "llama",
    context: int = 512,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised causal language model from a config: float32, no dropout, in evaluation mode.

    Args:
        tokenizer: whose vocabulary and special tokens the model takes.
        layers: transformer blocks.
        width: size of the hidden states, a multiple of 16; one head per 16, an MLP of four times the width.
        kind: "llama" (rotary positions, RMS norm) or "gpt2" (learnt positions).
        context: the longest sequence, prompt and completion together.
        seed: of the weights. The global generator is left as it was.

    Raises:
        ValueError: an unknown kind, or a width that is no multiple of 16.
    """
    if width < 16 or width % 16:
        raise ValueError(f"width = {width}: a positive multiple of 16 is needed")
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config: LlamaConfig | GPT2Config
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16,
            max_position_embeddings=context,
            **special,
        )
    elif kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=width,
            n_layer=layers,
            n_head=width // 16,
            n_positions=context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **special,
        )
    else:
        raise ValueError(f"kind = {kind!r}: choose 'llama' or 'gpt2'")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    return model
