"""Hypothesis profiles: derandomised, with more examples on demand (`--hypothesis-profile=nightly`)."""

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
