"""Train as each of several configurations says, in as many processes as this is launched in.

A program and not a test: `accelerate launch --config_file … tests/llm_processes.py RUN.yaml …`, in a folder.
"""

import sys

import torch

from nashpref.llm.command import read_method, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in sys.argv[1:]:
        train(read_method(path))
