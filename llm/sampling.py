"""Sampling from one model, or from a geometric mixture of several, with a cache of keys and values for each.

The randomness is one uniform number for every token, drawn beforehand: which response is drawn depends on
these numbers alone, neither on the batch that it is drawn in nor on how many processes share the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nashpref.llm.data import Text
from nashpref.llm.encoding import Encoded, Encoder, Tokens
from nashpref.llm.logprobs import (
    causal_model,
    check_temperature,
    hidden_states,
    logits_of,
    quietly,
    takes_positions,
)

CODE_DIGITS, LOG_2 = 30, math.log(2.0)  # of the 53 that float64 has, the others being left to draw with


@dataclass(frozen=True, slots=True)
class Network:
    """A causal language model, and what makes its weights those of the policy that is meant.

    Attributes:
        model: of transformers, or a PEFT model around one.
        weights: a context within which the model has this policy's weights; by default, its own.
    """

    model: nn.Module
    weights: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, slots=True)
class Mixture:
    """The geometric mixture token by token: `log π(y_t|y_<t) = Σ_k w_k log π_k(y_t|y_<t) − log Z(y_<t)`.

    Every factor `log π_k` is taken at the sampling temperature. The mixture of whole responses,
    `Π_k π_k(y)^{w_k}/Z`, is another policy, which cannot be sampled token by token; the two are equal where
    responses have one token. The factor that sets them apart is `Σ_t log Z(y_<t)`, see `Samples`.

    Attributes:
        networks: π_k.
        weights: w_k, of sum 1.
    """

    networks: Sequence[Network]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.networks) != len(self.weights) or abs(sum(self.weights) - 1.0) > 1e-9:
            raise ValueError(f"weights = {list(self.weights)} for {len(self.networks)} networks: of sum 1")


class Samples(NamedTuple):
    """K completions of each of B prompts.

    Attributes:
        texts: B lists of K, without the end-of-sequence token; other special tokens are left in, since a
            policy that says them has said something else.
        tokens: B·K rows, prompt after prompt, each prompt and completion; the end-of-sequence token is one of
            the completion's where it was drawn.
        logps: `(B·K,)` float32: log-probability of each completion in the policy that it was drawn from, at
            the sampling temperature and among the tokens that `top_k` leaves.
        log_z: `(B·K,)` float32: `Σ_t log Z(y_<t)` of a mixture, which is at most 0; 0 for a single network.
            `exp(log_z)` is proportional to the ratio of the mixture of whole responses to the one that was
            sampled: an importance weight.
    """

    texts: list[list[str]]
    tokens: Tokens
    logps: Tensor
    log_z: Tensor


def sample(
    policy: nn.Module | Mixture,
    encoder: Encoder,
    prompts: Sequence[Text],
    count: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    codes: Tensor | None = None,
) -> Samples:
    """`count` completions of every prompt; each prompt is read once, whatever `count` is.

    With `codes`, arithmetic sampling (arXiv:2210.15458): all completions, in the order of their tokens, share
    the unit interval in parts as long as their probabilities, and the one is taken in whose part the code
    lies. A uniform code draws from the policy. K codes at equal distances behind a uniform one are not
    independent, but spread over the policy: a mean over them has the same expectation and less variance.

    Args:
        policy: a causal language model, or a mixture of several.
        encoder: prompts to tokens; leaves room for the completion within its `max_length`.
        prompts: texts or chats.
        count: K ≥ 1.
        max_new_tokens: longest completion; one that reaches it has no end-of-sequence token.
        temperature: of the logits, > 0. The most likely token always: `top_k=1`.
        top_k: how many tokens, the most likely ones, are drawn from; None: all.
        generator: of the numbers that decide, on the CPU.
        uniforms: these numbers themselves, `(B·K, max_new_tokens)` in [0, 1), instead.
        codes: `(B·K,)` float64 in [0, 1); `uniforms` decide where a completion needs more than
            `CODE_DIGITS` binary digits.

    Returns:
        `Samples`, on the model's device.

    Raises:
        ValueError: no prompts, numbers out of range, or neither or both of `generator` and `uniforms`.
    """
    check_temperature(temperature)
    if not prompts or count < 1 or max_new_tokens < 1 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"{len(prompts)} prompts, count = {count}, max_new_tokens = {max_new_tokens}, top_k = {top_k}: "
            "at least 1 of each is needed"
        )
    if (generator is None) == (uniforms is None):
        raise ValueError("give generator or uniforms: the randomness, one of the two")
    shape = (len(prompts) * count, max_new_tokens)
    if uniforms is None:
        uniforms = torch.rand(shape, generator=generator)
    elif uniforms.shape != shape:
        raise ValueError(f"uniforms: {tuple(uniforms.shape)} where {shape} is needed")
    networks, weights = _factors(policy)
    encoded = [encoder.encode_prompt(prompt, room=max_new_tokens) for prompt in prompts]
    device = causal_model(networks[0].model).device
    uniforms = uniforms.to(device, torch.float64, copy=True)
    if codes is not None:
        if codes.shape != shape[:1]:
            raise ValueError(f"codes: {tuple(codes.shape)} where {shape[:1]} is needed")
        uniforms[:, 0] = codes
    ids, padding = (each.to(device) for each in _left_padded(encoded, encoder.pad_id))
    mask = (torch.arange(ids.shape[1] + max_new_tokens, device=device) >= padding[:, None]).long()

    rows = shape[0]
    drawn = torch.full(shape, encoder.pad_id, device=device)
    logps, log_z = torch.zeros(2, rows, device=device)
    open_rows = torch.ones(rows, dtype=torch.bool, device=device)
    lengths = torch.zeros(rows, dtype=torch.int64, device=device)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(quietly(network.model))
        if len(networks) == 1:  # none takes its place in between
            stack.enter_context(networks[0].weights())
            networks = [Network(networks[0].model)]
        decoders = [_Decoder(network, mask) for network in networks]
        logits = [decoder.start(ids, count) for decoder in decoders]
        for t in range(max_new_tokens):
            log_p, z = _mix(logits, weights, temperature, top_k)
            token, rest = _invert(log_p, uniforms[:, t])
            token = token.masked_fill(~open_rows, encoder.pad_id)
            chosen = log_p.gather(1, token[:, None]).squeeze(1)
            logps += torch.where(open_rows, chosen, 0.0)
            if codes is not None and t + 1 < max_new_tokens:
                uniforms[:, t + 1] = torch.where(logps > -CODE_DIGITS * LOG_2, rest, uniforms[:, t + 1])
            log_z += torch.where(open_rows, z, 0.0)
            drawn[:, t] = token
            lengths += open_rows
            open_rows = open_rows & (token != encoder.end_id)
            if t + 1 == max_new_tokens or not open_rows.any():
                break
            logits = [decoder.after(token) for decoder in decoders]
    texts = _texts(encoder, drawn, lengths)
    ids, padding = (each.repeat_interleave(count, dim=0) for each in (ids, padding))
    return Samples(
        [texts[row : row + count] for row in range(0, rows, count)],
        _right_padded(ids, padding, drawn, lengths, encoder.pad_id),
        logps,
        log_z,
    )


def mixture_logps(
    policy: nn.Module | Mixture, tokens: Tokens, *, temperature: float = 1.0, top_k: int | None = None
) -> tuple[Tensor, Tensor]:
    """What `sample` reports as `logps` and `log_z` of these completions, read in one pass; no gradients.

    Holds the logits of all completion tokens at once: for checks and small batches.

    Returns:
        Two tensors `(B,)`, float32; `−inf` for a completion that `top_k` excludes.
    """
    networks, weights = _factors(policy)
    predicted = tokens.completion_mask.bool()
    positions = predicted.flatten().nonzero().squeeze(1)
    logits = []
    for network in networks:
        with network.weights(), quietly(network.model):
            causal = causal_model(network.model)
            states = hidden_states(causal, tokens).flatten(0, 1).index_select(0, positions - 1)
            logits.append(logits_of(causal, states))
    log_p, z = _mix(logits, weights, temperature, top_k)
    targets = tokens.input_ids.flatten().index_select(0, positions)
    values = torch.stack([log_p.gather(1, targets[:, None]).squeeze(1), z])
    rows = predicted.new_zeros((2, *predicted.shape), dtype=torch.float32)
    rows[:, predicted] = values
    logps, log_z = rows.sum(dim=2)
    return logps, log_z


class _Decoder:
    """One network in the middle of B·K completions, with its cache; for use within `quietly`."""

    def __init__(self, network: Network, mask: Tensor) -> None:
        self.network, self.causal = network, causal_model(network.model)
        # Of all the tokens that there is room for.
        self.mask, self.positions = mask, (mask.cumsum(dim=1) - 1).clamp(min=0)
        self.positioned = takes_positions(self.causal)
        self.cache: Any = None
        self.width = 0

    def start(self, ids: Tensor, count: int) -> Tensor:
        """Read the B prompts; the logits of the first token, `(B·K, V)`."""
        with self.network.weights():
            logits = logits_of(self.causal, self._read(ids).repeat_interleave(count, dim=0))
        if count > 1:
            self.cache.batch_repeat_interleave(count)
        self.mask = self.mask.repeat_interleave(count, dim=0)
        self.positions = self.positions.repeat_interleave(count, dim=0)
        return logits

    def after(self, token: Tensor) -> Tensor:
        """Read one token more in every row; the logits of the next."""
        with self.network.weights():
            return logits_of(self.causal, self._read(token[:, None]))

    def _read(self, ids: Tensor) -> Tensor:
        """The states of the last of `ids`, `(N, d)`."""
        start, self.width = self.width, self.width + ids.shape[1]
        options: dict[str, Any] = {"attention_mask": self.mask[:, : self.width]}
        if self.positioned:
            options["position_ids"] = self.positions[:, start : self.width]
        output = self.causal.base_model(input_ids=ids, past_key_values=self.cache, use_cache=True, **options)
        self.cache = output.past_key_values
        states: Tensor = output[0][:, -1]
        return states


def _left_padded(prompts: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids `(B, T)` of prompts that all end in the last column, and the padding before each, `(B,)`."""
    rows = [torch.tensor(prompt.ids, dtype=torch.int64) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side="left")
    return ids, ids.shape[1] - torch.tensor([len(row) for row in rows])


def _right_padded(prompts: Tensor, padding: Tensor, drawn: Tensor, lengths: Tensor, pad_id: int) -> Tokens:
    """Prompts, each with so many of its drawn tokens as its completion."""
    ids = torch.cat([prompts, drawn], dim=1)
    start = (prompts.shape[1] - padding)[:, None]
    end = start + lengths[:, None]
    column = torch.arange(int(end.max()), device=ids.device)
    attended = column < end
    ids = ids.gather(1, (column + padding[:, None]).clamp(max=ids.shape[1] - 1))
    return Tokens(ids.masked_fill(~attended, pad_id), attended.long(), attended & (column >= start))


def _texts(encoder: Encoder, drawn: Tensor, lengths: Tensor) -> list[str]:
    """What the completions say, without the end-of-sequence token."""
    rows = [row[:n] for row, n in zip(drawn.tolist(), lengths.tolist(), strict=True)]
    said = [row[:-1] if row[-1] == encoder.end_id else row for row in rows]
    texts: list[str] = encoder.tokenizer.batch_decode(said)
    return texts


def _factors(policy: nn.Module | Mixture) -> tuple[list[Network], list[float]]:
    if isinstance(policy, Mixture):
        return list(policy.networks), list(policy.weights)
    return [Network(policy)], [1.0]


def _mix(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float, top_k: int | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities `(N, V)` of the next token, and the mixture's `log Z`, `(N,)`; float32."""
    factors = [torch.log_softmax(each.float() / temperature, dim=-1) for each in logits]
    mixed = sum(weight * factor for weight, factor in zip(weights, factors, strict=True))
    assert isinstance(mixed, Tensor)
    z = torch.logsumexp(mixed, dim=-1) if len(factors) > 1 else mixed.new_zeros(len(mixed))
    if top_k is not None and top_k < mixed.shape[-1]:
        kept = mixed.topk(top_k, dim=-1).indices
        mixed = torch.full_like(mixed, -torch.inf).scatter(1, kept, mixed.gather(1, kept))
    return torch.log_softmax(mixed, dim=-1), z


def _invert(log_p: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The token at which the cumulative probability passes the number, and where between both: `(N,)`."""
    cumulative = log_p.double().exp().cumsum(dim=-1)
    wanted = uniforms[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, wanted, right=True).clamp(max=log_p.shape[-1] - 1)
    high = cumulative.gather(1, token)
    low = torch.where(token > 0, cumulative.gather(1, (token - 1).clamp(min=0)), 0.0)
    between = ((wanted - low) / (high - low)).clamp(0.0, 1.0 - 2.0**-53)  # again uniform, given the token
    return token.squeeze(1), between.squeeze(1)
