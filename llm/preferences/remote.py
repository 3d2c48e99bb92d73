"""A judge behind a network: failures, and answers that are paid for only once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from torch import Tensor

from nashpref.llm.data import Text
from nashpref.llm.preferences.adapters import checked, from_judge, key_of, matrix_of, sample
from nashpref.policies import FloatArray


class RemoteJudge:
    """A judge behind a network: asked one sample at a time, again after a failure, never twice the same.

    Every pair is asked both ways, as by `from_judge`. An answer is kept as soon as it is there: what was
    answered before a failure need not be asked again.

    Args:
        call: `(prompt, a, b) -> number in [0, 1]`, 1 where `a` wins; any exception of it counts as a failure.
            With several workers it is called from several threads.
        waits: seconds before each new attempt after a failure; as many attempts as entries, and one.
        cache: a JSONL file in which answers are kept beyond this object's life; one file for each judge, and
            one process at a time. A last line that was not written to its end is dropped.
        workers: calls under way at the same time.

    Raises:
        ValueError: an answer outside [0, 1], which is not kept; a cache file that holds something else.
        RuntimeError: a sample for which all attempts failed.
    """

    def __init__(
        self,
        call: Callable[[Text, Text, Text], float],
        *,
        waits: Sequence[float] = (1.0, 4.0, 16.0),
        cache: str | Path | None = None,
        workers: int = 1,
    ) -> None:
        self.call, self.waits, self.workers = call, tuple(waits), workers
        self.cache = None if cache is None else Path(cache)
        self._known = {} if self.cache is None else _read_cache(self.cache)
        self._lock = Lock()

    def __call__(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> Tensor:
        """`(j(x, a, b) + 1 − j(x, b, a))/2`, `(N,)` float64."""
        return from_judge(self._judge)(prompts, a, b)

    def matrix(self, prompt: Text, responses: Sequence[Text]) -> FloatArray:
        """From K(K − 1) verdicts."""
        return matrix_of(self, prompt, responses)

    def _judge(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> list[float]:
        keys = [key_of(triple) for triple in zip(prompts, a, b, strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        with ThreadPoolExecutor(self.workers) as pool:
            jobs = [pool.submit(self._ask, i, prompts[i], a[i], b[i]) for i in first.values()]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [self._known[key] for key in keys]

    def _ask(self, i: int, prompt: Text, a: Text, b: Text) -> None:
        answer = checked([self._attempt(i, prompt, a, b)], [prompt], "the judge", first=i).item()
        line = json.dumps({"prompt": prompt, "a": a, "b": b, "p": answer}, default=dict)
        with self._lock:
            if self.cache is not None:
                with self.cache.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
            self._known[key_of((prompt, a, b))] = answer

    def _attempt(self, i: int, prompt: Text, a: Text, b: Text) -> float:
        for wait in self.waits:
            try:
                return self.call(prompt, a, b)
            except Exception:
                time.sleep(wait)
        try:
            return self.call(prompt, a, b)
        except Exception as error:
            times = len(self.waits) + 1
            raise RuntimeError(
                f"the judge failed {times} times at {sample(i, prompt)}, last with {error!r}; "
                "the answers before it are kept"
            ) from error


def _read_cache(path: Path) -> dict[str, float]:
    known: dict[str, float] = {}
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            known[key_of((row["prompt"], row["a"], row["b"]))] = checked([row["p"]], [""], "it").item()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no answer of a judge ({error}); remove it, or name another file"
            ) from None
    if whole < len(content):
        os.truncate(path, whole)
    return known
