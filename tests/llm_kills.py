"""`kill -9` a training run again and again, resume it, and compare it with one that was left in peace.

A program and not a test, because it forks: `python tests/llm_kills.py FOLDER KILLS SEED`. Prints JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, get_scheduler  # noqa: F401  (once, and not in every child)

from nashpref.llm import checkpoints
from nashpref.llm.batching import LengthBuckets
from nashpref.llm.training import TrainConfig, fit

STEPS, SYNCS = 60, 6  # a checkpoint of five files, and their folder


class Regression(nn.Module):
    """Dropout draws from the global generator: a resumed run must go on with that too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, batch):
        x, y = batch
        return {"loss": (self.net(x)[:, 0] - y).square()}


def examples(n=50):
    generator = torch.Generator().manual_seed(0)
    return [(x, x.sum()) for x in torch.randn(n, 4, generator=generator)]


def together(rows):
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def train(folder):
    data = examples()
    batches = LengthBuckets([1 + i % 5 for i in range(len(data))], 8, seed=3)
    config = TrainConfig(
        output=str(folder), max_steps=STEPS, batch_size=8, micro_batch_size=3, learning_rate=1e-2,
        warmup_steps=5, save_every=1, log_every=1, keep_checkpoints=2,
    )  # fmt: skip
    fit(Regression(), data, batches, together, config)


def forked(folder, die=None):
    """The run in a child process; its id. With `die = (step, n)` it dies at the nth sync of a save."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    sync, step, left = checkpoints._sync, *(die or (STEPS + 1, 0))

    def deadly_sync(path):
        nonlocal left
        if f"{checkpoints.PARTIAL}{checkpoints.PREFIX}{step:08d}" in str(path):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    checkpoints._sync = deadly_sync
    try:
        train(folder)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def logged(path):
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def main(folder, kills, seed):
    rng = random.Random(seed)
    peaceful, haunted = folder / "peaceful", folder / "haunted"
    status = os.waitpid(forked(peaceful), 0)[1]
    assert status == 0, status
    reached = during_save = 0
    for k in range(kills):
        step = max(STEPS * k // kills, reached) + 1
        if k % 2:  # in the middle of a save: before any of its files is on the disk, between two, after all
            child = forked(haunted, die=(step, rng.randint(1, SYNCS)))
        else:  # from outside, whatever it does just then
            child = forked(haunted)
            while max(checkpoints.steps(haunted / "checkpoints"), default=0) < step - 1:
                time.sleep(0.0005)
                assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
            time.sleep(rng.uniform(0.0, 0.01))
            os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        before, reached = reached, max(checkpoints.steps(haunted / "checkpoints"), default=0)
        assert before <= reached < STEPS
        half_saved = any((haunted / "checkpoints").glob(f"{checkpoints.PARTIAL}*"))
        assert half_saved or not k % 2
        during_save += half_saved
    status = os.waitpid(forked(haunted), 0)[1]
    assert status == 0, status
    last = f"checkpoints/{checkpoints.PREFIX}{STEPS:08d}"
    tensors = sorted(path.name for path in (peaceful / last).glob("*.safetensors"))
    metrics = [logged(run / "metrics.jsonl") for run in (peaceful, haunted)]
    bytes_of = [{name: (run / last / name).read_bytes() for name in tensors} for run in (peaceful, haunted)]
    result = {
        "kills": kills,
        "during_save": during_save,
        "killed_last_at": reached,
        "equal": [name for name in tensors if bytes_of[0][name] == bytes_of[1][name]],
        "files": tensors,
        "same_metrics": metrics[0] == metrics[1],
        "logged": len(metrics[1]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
