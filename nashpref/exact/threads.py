"""One BLAS thread where several would spend their time waiting for each other."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

SHARED_FROM = 64  # responses below which BLAS does not share its work out anyway


def blas_threads(n: int, worth: int) -> AbstractContextManager[object]:
    """Limit BLAS to one thread for a game of n < `worth` responses, for the length of a `with` block.

    The LU factorisations of a few hundred unknowns gain nothing from a second thread and lose up to 20 % to
    it, more with every core. The limit holds for the whole process while the block runs.
    """
    if not SHARED_FROM <= n < worth:
        return nullcontext()
    one: AbstractContextManager[object] = _controller("scipy.linalg" in sys.modules).limit(
        limits=1, user_api="blas"
    )
    return one


@cache
def _controller(with_scipy: bool) -> ThreadpoolController:
    """A controller sees the libraries that were loaded when it was made: scipy brings a BLAS of its own."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
