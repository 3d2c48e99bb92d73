"""Which examples make up which optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np


class LengthBuckets:
    """Shuffled batches of examples of similar length, whose order can be taken up again anywhere.

    Each epoch shuffles all examples, sorts every `bucket` batches' worth of them by length, cuts these into
    batches and shuffles the batches: neighbours in length share a batch, and so little of it is padding,
    while which examples meet changes from epoch to epoch. `bucket=1` shuffles without regard to length.

    Iterating gives the remaining batches of the epoch as lists of indices in order of length, and then the
    next epoch can be iterated. Batch k of epoch e is a function of `lengths`, `batch_size`, `seed` and
    `bucket` alone. So all processes of a run see the same batches however many they are, and process p of n
    takes its share of one as `batch[p::n]`.

    Every example comes exactly once in an epoch. The sizes of batches differ by at most one, none above
    `batch_size`: there is no short last batch whose gradient is noisier than the others.

    Args:
        lengths: one for each example, in tokens.
        batch_size: the most examples in a batch, over all processes.
        seed: of the order.
        bucket: batches that are sorted by length together; fewer mix more freely and pad more.

    Raises:
        ValueError: no examples, or `batch_size` or `bucket` below 1.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int = 0, bucket: int = 32) -> None:
        if not len(lengths):
            raise ValueError("lengths is empty: there are no examples to batch")
        for name, value in (("batch_size", batch_size), ("bucket", bucket)):
            if value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1")
        self._lengths = np.asarray(lengths)
        self.batch_size, self.seed, self.bucket = batch_size, seed, bucket
        self.epoch = self.cursor = 0

    def __len__(self) -> int:
        """Batches of one epoch."""
        return -(-len(self._lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._batches(self.epoch)
        for batch in batches[self.cursor :]:
            # Moved on before the batch is given out, so that a state saved during a step is the next step's.
            self.cursor += 1
            if self.cursor == len(self):
                self.epoch, self.cursor = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is, and what the order depends on; JSON."""
        return {
            "epoch": self.epoch,
            "cursor": self.cursor,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "bucket": self.bucket,
            "examples": len(self._lengths),
            "tokens": int(self._lengths.sum()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: the state is of other data or options, with which the order would be another.
        """
        now = self.state_dict()
        for name in ("seed", "batch_size", "bucket", "examples", "tokens"):
            if state.get(name) != now[name]:
                raise ValueError(
                    f"the order of the data cannot be taken up again: {name} was {state.get(name)}, "
                    f"and is {now[name]} now"
                )
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])

    def _batches(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self._lengths))
        bounds = [k * len(order) // len(self) for k in range(len(self) + 1)]
        for first in range(0, len(self), self.bucket):
            start, stop = bounds[first], bounds[min(first + self.bucket, len(self))]
            part = order[start:stop]
            order[start:stop] = part[np.argsort(self._lengths[part], kind="stable")]
        batches = [order[start:stop].tolist() for start, stop in pairwise(bounds)]
        return [batches[i] for i in rng.permutation(len(batches))]


class Repeated:
    """Every batch several times in a row.

    Args:
        batches: which.
        times: how often.
    """

    def __init__(self, batches: LengthBuckets, times: int) -> None:
        self.batches, self.times = batches, times
        self._batch: list[int] = []
        self._left = 0

    def __len__(self) -> int:
        """Steps of one epoch."""
        return self.times * len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        while self._left:
            self._left -= 1
            yield self._batch
        for batch in self.batches:
            self._batch, self._left = batch, self.times - 1
            yield batch
            while self._left:
                self._left -= 1
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """That of the batches, and what is left of the current one."""
        return {**self.batches.state_dict(), "times": self.times, "batch": self._batch, "left": self._left}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.batches.load_state_dict(state)
        self._batch, self._left = list(state["batch"]), int(state["left"])


def padding(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> float:
    """The share of padding among all positions, when every batch is padded to its longest example."""
    filled = total = 0
    for batch in batches:
        filled += sum(lengths[i] for i in batch)
        total += len(batch) * max(lengths[i] for i in batch)
    return 1.0 - filled / total
