"""Every claim of speed and accuracy, measured in one run against its named peer: `python -m benchmarks`."""
