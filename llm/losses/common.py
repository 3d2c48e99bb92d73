"""What the losses share: the logistic loss with soft labels, and the checks of their arguments."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

Label = Tensor | float


def logistic(logit: Tensor, p: Label) -> Tensor:
    """`−p log σ(logit) − (1 − p) log σ(−logit)`; smallest at σ(logit) = p."""
    return (1.0 - p) * logit - logsigmoid(logit)  # torch's softplus is linear above 20: inexact in float64


def same_shape(**tensors: Label) -> None:
    """Raise `ValueError` unless all tensors have the shape of the first: broadcasting would mix examples.

    Numbers pass.
    """
    shapes = {name: tuple(value.shape) for name, value in tensors.items() if isinstance(value, Tensor)}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"one value for each example is needed, all of one shape: {listed}")


def positive(**values: float) -> None:
    """Raise `ValueError` unless every value is finite and positive."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} = {value}: it must be finite and positive")
