"""Weights, gradients and the optimizer's state in pieces, one for each process: torch's FSDP2, as one group.

A network that samples is not read front to back once a step, but once for each token, with the weights of
several policies in turn, and as often as this process's responses are long. So the whole network is put
together at the start of a step and taken apart at its end, rather than a layer at a time: a process keeps an
n-th of the weights and of the optimizer's state between steps, and within a step all weights and gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device, processes: int) -> None:
    """Take `module` apart, in place; its parameters are others from here on. All processes call it."""
    fully_shard(module, mesh=init_device_mesh(device.type, (processes,)))


def unshard(module: nn.Module) -> None:
    """Put `module` together for good: its parameters are ordinary ones again. All processes call it."""
    if not isinstance(module, FSDPModule):
        return
    module.reshard()
    made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter that is shared stays one
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter not in made:
                made[parameter] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
            setattr(owner, name, made[parameter])


@contextmanager
def together(module: nn.Module) -> Iterator[None]:
    """Within, the weights of `module` are whole. All processes enter it."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may have a piece. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, on the parameter's device and in pieces if that is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor
