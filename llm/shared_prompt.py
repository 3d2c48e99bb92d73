"""Log-probabilities of several completions of a prompt with one pass over the prompt.

A row holds the prompt and its completions one after another. The tokens of each completion attend to the
prompt and to themselves, and their positions go on from the prompt's, so that every number is that of a row
of its own. P + K R tokens pass through the model instead of K (P + R), forward and backward.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from nashpref.llm.encoding import Encoded, Tokens, collate
from nashpref.llm.logprobs import (
    CHUNK,
    as_reference,
    causal_model,
    check_completions,
    check_temperature,
    completion_logps,
    score_targets,
)


def pair_logps(model: nn.Module, tokens: Tokens, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """`completion_logps(model, tokens)` of B pairs: `log π(y⁺|x)` of all, then `log π(y⁻|x)`, `(2B,)`.

    Args:
        model: one for which `can_share_prompts` holds.
        tokens: 2B rows padded on the right, B with y⁺ and then B with y⁻ after the same prompts.
        temperature, chunk: as in `nashpref.llm.logprobs.token_logps`.

    Raises:
        ValueError: also for an odd number of rows, padding on the left, or prompts that differ within a pair.
    """
    pairs, odd = divmod(len(tokens.input_ids), 2)
    if odd:
        raise ValueError(f"{len(tokens.input_ids)} rows: B chosen ones and then B rejected ones are needed")
    beside = torch.arange(2 * pairs, device=tokens.input_ids.device).view(2, pairs).T.flatten()
    together = Tokens(*(each[beside] for each in tokens))
    return group_logps(model, together, 2, temperature=temperature, chunk=chunk).view(pairs, 2).T.flatten()


def group_logps(
    model: nn.Module, tokens: Tokens, count: int, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """`completion_logps(model, tokens)` of N prompts with K = `count` completions each, `(N K,)`.

    Args:
        model: one for which `can_share_prompts` holds.
        tokens: N K rows padded on the right, the K of a prompt one after another.
        count: K.
        temperature, chunk: as in `nashpref.llm.logprobs.token_logps`.

    Raises:
        ValueError: also for another number of rows, padding on the left, or prompts that differ in a group.
    """
    check_temperature(temperature)
    check_completions(tokens)
    causal = causal_model(model)
    rows, width = tokens.input_ids.shape
    if rows % count:
        raise ValueError(f"{rows} rows: {count} of each prompt are needed")
    ids, mask, counted = (each.view(-1, count, width) for each in tokens)
    if not mask[:, :, 0].all():
        raise ValueError("the rows are padded on the left: pad them on the right")
    start = _prompt_lengths(ids, counted)

    # Columns 0 … width − 1 are a group's first row as it is; the other completions follow, C columns each.
    C = int((mask.sum(dim=2) - start[:, None]).max())
    source = start[:, None] + torch.arange(C, device=ids.device)
    inside, source = source < width, source.clamp(max=width - 1)

    def row(each: Tensor) -> Tensor:
        moved = each[:, 1:].gather(2, source[:, None].expand(-1, count - 1, -1))
        return torch.cat([each[:, 0], moved.flatten(1)], dim=1)

    kept = torch.cat([torch.ones_like(mask[:, 0], dtype=torch.bool), inside.repeat(1, count - 1)], dim=1)
    row_ids, valid, scored = row(ids), row(mask.bool()) & kept, row(counted.bool()) & kept
    columns = torch.arange(row_ids.shape[1], device=ids.device)
    block = torch.where(columns < width, 0, (columns - width) // C + 1)
    place = (columns - width) % C  # within a completion that was moved
    positions = torch.where(block > 0, start[:, None] + place, columns)

    states: Tensor = causal.base_model(
        input_ids=row_ids,
        attention_mask=_mask(start, valid, block, causal.dtype),
        position_ids=positions,
        use_cache=False,
    )[0]
    first = (block > 0) & (place == 0)
    before = torch.where(first, start[:, None] - 1, columns - 1)  # what predicts each column
    group, column = scored.nonzero(as_tuple=True)
    scores = score_targets(
        causal, states[group, before[group, column]], row_ids[group, column], temperature, chunk
    )
    return scores.new_zeros(rows).index_add(0, count * group + block[column], scores)


def cheapest(model: nn.Module, tokens: Tokens, count: int) -> int:
    """How many of a prompt's K = `count` completions to put into one row: the divisor of K that costs least.

    A row of L tokens costs `L + L²/(6 d)` of what a token costs outside of attention, d the model's width.
    """
    d = int(causal_model(model).config.get_text_config().hidden_size)
    R = int(tokens.completion_mask.sum(dim=1).max())
    P = tokens.input_ids.shape[1] - R

    def cost(size: int) -> float:
        L = P + size * R
        return (L + L * L / (6.0 * d)) / size

    return min((size for size in range(1, count + 1) if count % size == 0), key=cost)


def can_share_prompts(model: nn.Module) -> bool:
    """Whether `pair_logps` gives this model's log-probabilities: tried on a pair of a few tokens.

    Not for recurrent models, sliding-window attention, relative positions that ignore `position_ids`, or
    attention kernels that take no mask of their own (FlashAttention).
    """
    causal = causal_model(model)
    config = causal.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) if layers is None else {*layers} - {"full_attention"}
    takes_positions = "position_ids" in inspect.signature(causal.base_model.forward).parameters
    if windowed or not takes_positions or config._attn_implementation not in ("eager", "sdpa"):
        return False
    rows = [[0, 1, 2, 3, 4], [0, 1, 4, 2]]
    pair = [Encoded([i % config.vocab_size for i in ids], start=2) for ids in rows]
    tokens = collate(pair, pad_id=0).to(causal.device)
    with as_reference(causal):
        try:
            shared = pair_logps(causal, tokens)
        except (TypeError, ValueError, RuntimeError):  # it takes no mask of this kind
            return False
        apart = completion_logps(causal, tokens)
    tolerance = torch.finfo(causal.dtype).eps ** 0.5
    return bool((shared - apart).abs().max() < tolerance * apart.abs().max())


def _prompt_lengths(ids: Tensor, counted: Tensor) -> Tensor:
    """Where the completions of each group start, `(N,)`."""
    starts = counted.int().argmax(dim=2)
    start = starts[:, 0]
    prompt = torch.arange(ids.shape[2], device=ids.device) < start[:, None, None]
    differ = ((ids != ids[:, :1]) & prompt).any(dim=2) | (starts != start[:, None])
    if differ.any():
        what = "pair" if ids.shape[1] == 2 else "group"
        at = int(differ.any(dim=1).nonzero()[0])
        raise ValueError(f"{what} {at}: the prompts differ; score the rows one by one")
    return start


def _mask(starts: Tensor, valid: Tensor, block: Tensor, dtype: torch.dtype) -> Tensor:
    """`(N, 1, L, L)`, added to the attention's logits: no completion sees another one."""
    columns = torch.arange(valid.shape[1], device=valid.device)
    causal = columns[:, None] >= columns
    seen = (block[:, None] == block) | (columns < starts[:, None, None])
    allowed = (causal & seen & valid[:, None, :])[:, None]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
