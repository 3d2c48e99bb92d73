"""Named policies of one network: weights at some moment, kept beside it and put into it when they are asked.

Only trained weights are kept. Under LoRA that is a small share of the model; without it, every policy that
differs from the others costs a copy. Policies are never changed, so that equal ones are one object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from nashpref.llm.logprobs import adapters_disabled, has_adapters
from nashpref.llm.sharding import like, whole
from nashpref.mirror import MirrorStep


@dataclass(frozen=True, eq=False)
class Weights:
    """What was trained, at one moment.

    Attributes:
        tensors: one for each trained parameter; None: the base of a PEFT model, without its adapters.
    """

    tensors: tuple[Tensor, ...] | None


@dataclass(frozen=True, eq=False)
class Blend:
    """The geometric mixture `Π_k π_k^{w_k}/Z` of policies.

    Attributes:
        parts: each π_k with its w_k; of sum 1.
    """

    parts: tuple[tuple[Weights, float], ...]


Policy = Weights | Blend


class Store:
    """Takes weights out of a network and puts them back.

    Args:
        model: the network.
        offload: keep weights on the CPU and bring them to the model's device each time they are asked for.
    """

    def __init__(self, model: nn.Module, *, offload: bool = False) -> None:
        self.model, self.offload = model, offload
        if not self.trained:
            raise ValueError("no parameter of the model requires a gradient: there is nothing to train")

    @property
    def trained(self) -> list[nn.Parameter]:
        """Its trained parameters; others once it is sharded, and yet others whenever it is put together."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def take(self) -> Weights:
        """The network's weights as they are now, whole ones even where it is sharded."""
        device = torch.device("cpu") if self.offload else None
        return Weights(tuple(whole(p.detach()).to(device=device, copy=True) for p in self.trained))

    @cached_property
    def base(self) -> Weights:
        """What the network was before training: under PEFT its base, else its weights when first asked."""
        return Weights(None) if has_adapters(self.model) else self.take()

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Put weights into the network, for training to go on from there."""
        for parameter, tensor in zip(self.trained, weights.tensors or (), strict=True):
            parameter.copy_(like(parameter, tensor))

    @contextmanager
    def loaded(self, weights: Weights) -> Iterator[None]:
        """Within, the network has these weights, by pointer: nothing is copied.

        Autocast keeps casts of weights by their parameter, not by what it points to: they are thrown away.
        """
        if weights.tensors is None:
            with adapters_disabled(self.model):
                yield
            return
        trained = self.trained
        own = [p.data for p in trained]
        try:
            for parameter, tensor in zip(trained, weights.tensors, strict=True):
                parameter.data = tensor.to(parameter.device)
            torch.clear_autocast_cache()
            yield
        finally:
            for parameter, data in zip(trained, own, strict=True):
                parameter.data = data
            torch.clear_autocast_cache()


def mixed(step: MirrorStep, policies: Mapping[str, Policy]) -> Policy:
    """What a step without payoffs writes: a copy, a running average of weights, or a geometric mixture.

    A policy that is mixed into itself, as Nash-EMA's average is, would become a mixture of ever more
    networks. For such a step weights are averaged in place of log-probabilities, as Munos et al. do; with a
    tabular softmax policy the two are the same.
    """
    if step.copied is not None:
        return policies[step.copied]
    flat: dict[Weights, float] = {}
    for name, weight in step.anchors.items():
        policy = policies[name]
        for part, share in policy.parts if isinstance(policy, Blend) else ((policy, 1.0),):
            flat[part] = flat.get(part, 0.0) + share * float(weight)
    flat = {part: weight for part, weight in flat.items() if weight}  # none is sampled from for nothing
    if len(flat) == 1:
        return next(iter(flat))
    return average(flat) if step.to in step.anchors else Blend(tuple(flat.items()))


def average(parts: Mapping[Weights, float]) -> Weights:
    """Weights in the mean."""
    tensors: list[Sequence[Tensor]] = []
    for part in parts:
        if part.tensors is None:
            raise ValueError("weights cannot be averaged with the base of a PEFT model, which has none")
        tensors.append(part.tensors)

    def mean(each: Sequence[Tensor]) -> Tensor:
        wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in each]
        total = torch.stack([share * t for share, t in zip(parts.values(), wide, strict=True)]).sum(dim=0)
        return total.to(each[0].dtype)

    return Weights(tuple(mean(each) for each in zip(*tensors, strict=True)))
