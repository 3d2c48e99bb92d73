"""All responses of one policy against all responses of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nashpref.llm.data import Text
from nashpref.llm.preferences.adapters import Preference, checked, key_of


def win_rates(
    preference: Preference,
    prompts: Sequence[Text],
    a: Sequence[Sequence[Text]],
    b: Sequence[Sequence[Text]],
) -> Tensor:
    """`Pr(a_i ≻ b_k | x)` of B prompts with K and K' responses, `(B, K, K')` float64.

    A preference with a method `cross` of these arguments, such as a model that reads each response by
    itself, is asked that; any other is asked once for each pair of different responses there is.

    Raises:
        ValueError: an answer that is no probability, with its sample.
    """
    if (cross := getattr(preference, "cross", None)) is not None:
        return cross(prompts, a, b)  # type: ignore[no-any-return]
    places: dict[tuple[str, str, str], int] = {}
    triples: list[tuple[Text, Text, Text]] = []
    index = []
    for prompt, ours, theirs in zip(prompts, a, b, strict=True):
        x, keys = key_of(prompt), [key_of(other) for other in theirs]
        for one in ours:
            y = key_of(one)
            for other, z in zip(theirs, keys, strict=True):
                place = places.setdefault((x, y, z), len(triples))
                if place == len(triples):
                    triples.append((prompt, one, other))
                index.append(place)
    asked, ones, others = (list(column) for column in zip(*triples, strict=True))
    p = checked(preference(asked, ones, others), asked, "the preference")
    return p[torch.tensor(index)].reshape(len(prompts), len(a[0]), len(b[0]))
