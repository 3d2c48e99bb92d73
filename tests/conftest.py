"""Hypothesis profiles: derandomised, with more examples on demand (`--hypothesis-profile=nightly`)."""

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("nightly", deadline=None, max_examples=5000)
settings.load_profile("ci")
