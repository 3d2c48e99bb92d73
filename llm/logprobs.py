"""Log-probabilities of completions, without ever holding the logits of a batch.

The logits of B sequences of T tokens over a vocabulary V are the largest tensor of training, and all that is
wanted of them is one number per token of a completion. So the hidden states come from the model's backbone,
the head is applied to the positions that predict a completion's token only, a chunk of them at a time, and
chunks are recomputed in the backward pass.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from nashpref.llm.encoding import Tokens
from nashpref.progress import progress_bar

Score = Callable[..., Tensor]  # (model, tokens, *, temperature, chunk) → (B,)

CHUNK = 1 << 22  # logits that are held at once: 16 MiB in float32


def completion_logps(
    model: nn.Module, tokens: Tokens, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """`log π(y|x) = Σ_t log π(y_t|x, y_<t)`, `(B,)`: the row sums of `token_logps`."""
    return token_logps(model, tokens, temperature=temperature, chunk=chunk).sum(dim=1)


def token_logps(model: nn.Module, tokens: Tokens, *, temperature: float = 1.0, chunk: int = CHUNK) -> Tensor:
    """`log π(y_t|x, y_<t)` at every token of a completion, 0 elsewhere.

    `log softmax(logits/temperature)`: at the temperature at which y was sampled, these are the probabilities
    with which it was. Logits are in the model's dtype (or autocast's), reductions over the vocabulary in
    float32; a float64 model is float64 throughout. Padding may be on either side and changes nothing, nor do
    the other rows of the batch.

    Args:
        model: a causal language model of transformers, or a PEFT model around one. Inside
            `DistributedDataParallel` gradients are exchanged only if the *wrapped* module calls this.
        tokens: `input_ids`, `attention_mask`, `completion_mask`, `(B, T)`.
        temperature: > 0.
        chunk: how many logits are held at once; a single chunk is kept for the backward pass, several are
            recomputed in it.

    Returns:
        `(B, T)`, float32.

    Raises:
        ValueError: an empty completion, one that starts at the first token (nothing predicts it) or is masked
            out; a temperature that is not positive; a model without a backbone and a head.
    """
    check_temperature(temperature)
    check_completions(tokens)
    causal = causal_model(model)
    predicted = tokens.completion_mask.bool()
    # The token at flat position i is predicted from the hidden state at i − 1.
    positions = predicted.flatten().nonzero().squeeze(1)
    states = hidden_states(causal, tokens).flatten(0, 1).index_select(0, positions - 1)
    targets = tokens.input_ids.flatten().index_select(0, positions)
    scores = score_targets(causal, states, targets, temperature, chunk)
    return scores.new_zeros(predicted.shape).masked_scatter(predicted, scores)


def score_targets(causal: Any, states: Tensor, targets: Tensor, temperature: float, chunk: int) -> Tensor:
    """`log softmax(head(states)/temperature)[targets]`, `(n,)`, a chunk of logits at a time."""
    rows = max(1, chunk // causal.config.get_text_config().vocab_size)
    pieces = list(zip(torch.split(states, rows), torch.split(targets, rows), strict=True))
    if len(pieces) == 1 or not torch.is_grad_enabled():
        return torch.cat([_score(causal, *piece, temperature) for piece in pieces])
    return torch.cat(
        [checkpoint(_score, causal, *piece, temperature, use_reentrant=False) for piece in pieces]
    )


class Reference(nn.Module):
    """μ: the policy as it is now (under PEFT: without its adapters), never trained, and without dropout.

    Args:
        model: the policy. It is copied in memory, except under PEFT, where its own base is used.
        score: `completion_logps`, or `nashpref.llm.shared_prompt.pair_logps` for batches of pairs.
    """

    def __init__(self, model: nn.Module, score: Score = completion_logps) -> None:
        super().__init__()
        check_model(model)
        self._score = score
        self._shared = (model,) if has_adapters(model) else None  # in a tuple: no submodule of this one
        self.frozen = None if self._shared else copy.deepcopy(model).requires_grad_(False)

    def forward(self, tokens: Tokens, temperature: float = 1.0) -> Tensor:
        """`log μ(y|x)`, `(B,)`, without gradient."""
        policy = self._shared[0] if self._shared else self.frozen
        assert policy is not None
        with as_reference(policy):
            return self._score(policy, tokens, temperature=temperature)


def reference_logps(
    model: nn.Module,
    batches: Iterable[Tokens],
    *,
    temperature: float = 1.0,
    total: int = 0,
    progress: bool = False,
) -> Tensor:
    """`log μ(y|x)` of a whole data set, once: before training, while the policy still is μ.

    Under PEFT the adapters are disabled. Nothing is copied, and training needs no second model.

    Args:
        model: the policy before training.
        batches: the data set, in the order in which the result is wanted.
        temperature: as in `token_logps`.
        total: number of batches, for the bar.
        progress: show a bar, on a terminal, once two seconds have passed.

    Returns:
        `(N,)`, float32 on the CPU: the rows of all batches, one after the other.
    """
    check_model(model)
    device = next(model.parameters()).device
    results = []
    with as_reference(model), progress_bar(progress, total, "batch") as bar:
        for k, tokens in enumerate(batches):
            results.append(completion_logps(model, tokens.to(device), temperature=temperature).cpu())
            bar(k + 1)
    if not results:
        raise ValueError("no batches: the data set is empty")
    return torch.cat(results)


@contextmanager
def as_reference(model: nn.Module) -> Iterator[None]:
    """Within, `model` is its own reference: no gradients, no dropout, PEFT's adapters disabled."""
    with quietly(model), adapters_disabled(model):
        yield


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within, a PEFT model is its base; any other model is what it is."""
    with _unwrapped(model).disable_adapter() if has_adapters(model) else nullcontext():
        yield


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Within, no gradients and no dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def check_model(model: nn.Module) -> None:
    """Raise `ValueError` unless backbone and head together give the model's own logits, on two tokens.

    Some architectures scale their logits in ways of their own; log-probabilities of others than the model's
    would go unnoticed in training.
    """
    causal = causal_model(model)
    ids = torch.tensor([[0, 1 % causal.config.get_text_config().vocab_size]], device=causal.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with as_reference(causal):
        expected = causal(**inputs).logits
        ours = logits_of(causal, causal.base_model(**inputs)[0])
    error = (ours.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    if not error < 1e-2:  # bfloat16 rounds to 4e-3
        raise ValueError(
            f"{type(causal).__name__} does more to its logits than its head does (relative difference "
            f"{float(error):.2g}): this architecture is not supported"
        )


class _TargetLogProb(torch.autograd.Function):
    """`log softmax(logits/T)[target]` by row; its gradient takes one buffer of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        scaled = _wide(logits) / temperature if temperature != 1.0 else _wide(logits)
        normaliser = scaled.logsumexp(dim=-1)
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.temperature = temperature
        return scaled.gather(-1, targets[:, None]).squeeze(-1) - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, normaliser = ctx.saved_tensors
        weight = (gradient / ctx.temperature)[:, None]
        buffer = _wide(logits) / ctx.temperature
        buffer.sub_(normaliser[:, None]).exp_().mul_(-weight)
        buffer.scatter_add_(-1, targets[:, None], weight)
        return buffer.to(logits.dtype), None, None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _score(causal: Any, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
    scores: Tensor = _TargetLogProb.apply(  # type: ignore[no-untyped-call]
        logits_of(causal, states), targets, temperature
    )
    return scores


def logits_of(causal: Any, states: Tensor) -> Tensor:
    """The head, and what an architecture does to its logits after it."""
    config = causal.config.get_text_config()
    logits: Tensor = causal.get_output_embeddings()(states)
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def hidden_states(causal: Any, tokens: Tokens) -> Tensor:
    """`(B, T, d)` from the backbone; positions count attended tokens: padding on the left is harmless."""
    backbone = causal.base_model
    options = {"attention_mask": tokens.attention_mask, "use_cache": False}
    if takes_positions(causal):
        options["position_ids"] = (tokens.attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    states: Tensor = backbone(input_ids=tokens.input_ids, **options)[0]
    return states


def takes_positions(causal: Any) -> bool:
    """Whether the backbone is told positions; others count tokens, padding included, themselves."""
    return "position_ids" in inspect.signature(causal.base_model.forward).parameters


def check_temperature(temperature: float) -> None:
    """Raise `ValueError` unless it is finite and positive."""
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature = {temperature}: it must be finite and positive")


def check_completions(tokens: Tokens) -> None:
    """Raise `ValueError` for a completion that cannot be scored, with its row."""
    completion, attended = tokens.completion_mask.bool(), tokens.attention_mask.bool()
    first_attended = attended.cumsum(dim=1) == 1
    for wrong, reason in (
        (~completion.any(dim=1), "the completion is empty: drop the example"),
        ((completion & ~attended).any(dim=1), "the completion has tokens that are not attended to"),
        (
            (completion & first_attended).any(dim=1),
            "the completion starts at the first token, which nothing predicts: give the prompt a token, "
            "such as that for the beginning of a sequence",
        ),
    ):
        if wrong.any():
            raise ValueError(f"row {int(wrong.nonzero()[0])} of {len(wrong)}: {reason}")


def causal_model(model: nn.Module) -> Any:
    """The causal language model inside the wrappers, with its backbone and head."""
    causal = _unwrapped(model)
    if has_adapters(causal):
        if causal.active_peft_config.is_prompt_learning:
            raise ValueError("PEFT's prompt tuning is not supported: use LoRA or another adapter of weights")
        causal = causal.get_base_model()
    name = type(causal).__name__
    if not hasattr(causal, "get_output_embeddings") or causal.get_output_embeddings() is None:
        raise ValueError(f"{name} has no head over the vocabulary: a causal language model is needed")
    if causal.config.is_encoder_decoder or causal.base_model is causal:
        raise ValueError(f"{name} is no causal language model with a backbone and a head")
    return causal


def _unwrapped(model: nn.Module) -> Any:
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        return model
    if torch.is_grad_enabled():
        raise ValueError(
            "the model is inside DistributedDataParallel, which would not exchange these gradients: wrap the "
            "module whose forward pass computes the log-probabilities instead"
        )
    return model.module


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a PEFT model."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return hasattr(inner, "disable_adapter")
