"""How far a policy has moved from its reference, token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nashpref.llm.encoding import Tokens
from nashpref.llm.logprobs import (
    CHUNK,
    as_reference,
    causal_model,
    check_completions,
    check_temperature,
    hidden_states,
    logits_of,
    quietly,
)


class Divergence(NamedTuple):
    """At every token of a completion, 0 elsewhere; both `(B, T)` float32.

    Attributes:
        log_ratio: `log π(y_t|x, y_<t) − log μ(y_t|x, y_<t)`.
        kl: `KL(π(·|x, y_<t) ‖ μ(·|x, y_<t))`.
    """

    log_ratio: Tensor
    kl: Tensor


def divergence(
    policy: nn.Module,
    reference: nn.Module,
    tokens: Tokens,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """Two unbiased estimates of `KL(π(·|x) ‖ μ(·|x))`, as row sums, when the completions are drawn from π.

    The first is the plain one, `log π(y|x)/μ(y|x)`. The second, `Σ_t KL(π(·|x, y_<t) ‖ μ(·|x, y_<t))`,
    averages over the token at each t, given those before it, instead of drawing it. It is never negative, and
    each of its terms varies less than the plain one's; as a rule so does their sum, but not always as the
    source has it: where π is μ given some event, the plain estimate is constant. Completions that were cut
    at a length estimate the divergence of such cut ones.

    Both logits of a chunk of tokens are held at once, in float32; of a batch never. No gradients, no dropout.

    Args:
        policy: π, a causal language model, or a PEFT model around one.
        reference: μ, over the same vocabulary. A PEFT model is meant without its adapters, so that μ may be
            the same object as π.
        tokens: prompts with completions.
        temperature: of both, that at which the completions were sampled.
        chunk: how many logits of each model are held at once.

    Raises:
        ValueError: as `nashpref.llm.logprobs.token_logps`; or vocabularies of different sizes.

    Source: arXiv:2504.10637, where the second is called Rao–Blackwellised.
    """
    check_temperature(temperature)
    check_completions(tokens)
    pi, mu = causal_model(policy), causal_model(reference)
    sizes = [causal.config.get_text_config().vocab_size for causal in (pi, mu)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"vocabularies of {sizes[0]} and {sizes[1]} tokens: both policies need the same one")
    predicted = tokens.completion_mask.bool()
    positions = predicted.flatten().nonzero().squeeze(1)
    targets = tokens.input_ids.flatten().index_select(0, positions)

    with quietly(policy):
        ours = hidden_states(pi, tokens).flatten(0, 1).index_select(0, positions - 1)
    with as_reference(reference):
        theirs = hidden_states(mu, tokens).flatten(0, 1).index_select(0, positions - 1)
    ratios, kls = [], []
    everything = torch.arange(len(positions), device=positions.device)
    for part in torch.split(everything, max(1, chunk // sizes[0])):
        with quietly(policy):
            log_p = _log_softmax(logits_of(pi, ours[part]), temperature)
        with as_reference(reference):
            difference = log_p - _log_softmax(logits_of(mu, theirs[part]), temperature)
        ratios.append(difference.gather(1, targets[part, None]).squeeze(1))
        kls.append((log_p.exp_() * difference).sum(dim=1).clamp(min=0.0))  # below 0 it is rounding
    rows = torch.zeros(predicted.shape, device=predicted.device)
    return Divergence(*(rows.masked_scatter(predicted, torch.cat(each).float()) for each in (ratios, kls)))


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide / temperature, dim=-1)
