"""Hypothesis profiles: derandomised, with more examples on demand (`--hypothesis-profile=nightly`)."""

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("nightly", deadline=None, max_examples=5000)
settings.load_profile("ci")

try:
    import torch
except ModuleNotFoundError:  # the exact core is tested without it
    pass
else:
    # Tiny tensors: a second thread only waits for the first, and for seconds where others use the cores.
    torch.set_num_threads(1)


@pytest.fixture
def cut_off():
    """`cut_off(trainer, stop)`: it trains, and at the end of the step after so many the machine is gone."""

    def train(trainer, stop):
        advance, calls = trainer.objective.advance, []

        def dying(metrics):
            calls.append(1)
            if len(calls) > stop:
                raise RuntimeError("the machine is gone")
            return advance(metrics)

        trainer.objective.advance = dying
        with pytest.raises(RuntimeError, match="gone"):
            trainer.train(progress=False)

    return train
