"""Log-probabilities of both completions of a pair with one pass over their prompt.

A row holds the prompt, y⁺ and y⁻. The tokens of y⁻ attend to the prompt and to themselves, and their
positions go on from the prompt's, so that every number is the one of two separate rows. P + 2R tokens pass
through the model instead of 2P + 2R, forward and backward.
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
    check_temperature(temperature)
    check_completions(tokens)
    causal = causal_model(model)
    pairs, odd = divmod(len(tokens.input_ids), 2)
    if odd:
        raise ValueError(f"{len(tokens.input_ids)} rows: B chosen ones and then B rejected ones are needed")
    (ids, second_ids), (mask, second_mask), (counted, second_counted) = (
        torch.split(t, pairs) for t in tokens
    )
    width = ids.shape[1]
    if not mask[:, 0].all():
        raise ValueError("the rows are padded on the left: pad them on the right")
    start = _prompt_lengths(ids, counted, second_ids, second_counted)

    # Columns 0 … width − 1 are the chosen row as it is; the rejected completions follow, moved to one start.
    offsets = torch.arange(int((second_mask.sum(1) - start).max()), device=ids.device)
    source = start[:, None] + offsets
    inside = source < width
    source = source.clamp(max=width - 1)
    row_ids = torch.cat([ids, second_ids.gather(1, source)], dim=1)
    valid = torch.cat([mask.bool(), second_mask.bool().gather(1, source) & inside], dim=1)
    scored = torch.cat([counted.bool(), second_counted.bool().gather(1, source) & inside], dim=1)
    columns = torch.arange(row_ids.shape[1], device=ids.device)
    moved = columns >= width
    positions = torch.where(moved, start[:, None] + columns - width, columns)

    backbone_states: Tensor = causal.base_model(
        input_ids=row_ids,
        attention_mask=_mask(start, valid, moved, causal.dtype),
        position_ids=positions,
        use_cache=False,
    )[0]
    before = torch.where(columns == width, start[:, None] - 1, columns - 1)  # what predicts each column
    row, column = scored.nonzero(as_tuple=True)
    states = backbone_states[row, before[row, column]]
    scores = score_targets(causal, states, row_ids[row, column], temperature, chunk)
    return scores.new_zeros(2 * pairs).index_add(0, row + pairs * moved[column], scores)


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


def _prompt_lengths(ids: Tensor, counted: Tensor, second_ids: Tensor, second_counted: Tensor) -> Tensor:
    """Where the completions start, `(B,)`."""
    starts = counted.int().argmax(dim=1)
    prompt = torch.arange(ids.shape[1], device=ids.device) < starts[:, None]
    differ = ((ids != second_ids) & prompt).any(dim=1) | (starts != second_counted.int().argmax(dim=1))
    if differ.any():
        raise ValueError(f"pair {int(differ.nonzero()[0])}: the prompts differ; score the rows one by one")
    return starts


def _mask(starts: Tensor, valid: Tensor, moved: Tensor, dtype: torch.dtype) -> Tensor:
    """`(B, 1, L, L)`, added to the attention's logits: y⁻ does not see y⁺."""
    columns = torch.arange(valid.shape[1], device=valid.device)
    causal = columns[:, None] >= columns
    seen = ~moved[:, None] | moved | (columns < starts[:, None, None])
    allowed = (causal & seen & valid[:, None, :])[:, None]
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
