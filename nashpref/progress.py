"""Progress bars: on a terminal only, and only once two seconds have passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar of `total` units, and the function that sets how many are done; nothing when not `show`."""
    if not show:
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, delay=2, disable=None, unit=unit, leave=False) as bar:
        yield lambda done: bar.update(done - bar.n) and None
