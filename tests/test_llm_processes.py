"""Two processes, with the weights in both or a piece in each, take the steps of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import DistributedType
from safetensors.torch import load_file

from nashpref.llm.command import read_method, train
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.preferences import BradleyTerryModel, GeneralPreferenceModel
from nashpref.llm.training import TrainConfig, make_accelerator

ROOT = Path(__file__).parents[1]
LAUNCH = ["accelerate.commands.launch", "--config_file", "experiments/configs/two_cpu_processes.yaml"]
NASH = {
    "method": "nash",
    "rule": {"name": "nash-md", "beta": 0.1, "eta": [5.0, 2.5]},
    "preference": "judge",
    "model": {"name": "policy"},
    "data": {"train": "rows.jsonl", "evaluate": "rows.jsonl"},
    # Batches of 3, so that the processes have shares of 2 and 1, and these pieces that are not equally many.
    "train": {"rounds": 3, "updates": 4, "reuse": 2, "samples": 4, "max_new_tokens": 4, "batch_size": 3},
}
DPO = {
    "method": "dpo",
    "beta": 0.1,
    "reference": "copy",
    "model": {"name": "policy"},
    "data": {"train": "rows.jsonl", "evaluate": "rows.jsonl"},
    "train": {"max_steps": 12, "batch_size": 3, "micro_batch_size": 1},
}
COMMON = {"learning_rate": 1e-3, "log_every": 1, "save_every": 5, "eval_every": 4, "keep_checkpoints": 3}
PPO = {
    "method": "rlhf",
    "algorithm": {"name": "ppo", "beta": 0.1},
    "reward": "reward",
    "model": {"name": "policy"},
    "data": {"train": "rows.jsonl", "evaluate": "rows.jsonl"},
    "train": {"rounds": 6, "reuse": 2, "samples": 4, "max_new_tokens": 4, "batch_size": 3},
}
PIECES = {"shard": True}
RUNS = {
    "nash": (NASH, {}),
    "nash_pieces": (NASH, PIECES),
    "dpo_pieces": (DPO, PIECES),
    "ppo_pieces": (PPO, PIECES),
    "lora_pieces": (NASH | {"model": {"name": "policy", "lora": {"rank": 2}}}, PIECES),
    "continued_pieces": (NASH, PIECES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every run by one process, in `one`, and by two, in `two`."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = tiny_tokenizer(["say a b c d", "tell e f g"])
    policy, *others = (tiny_causal_lm(tokenizer, layers=1, width=16, context=32, seed=k) for k in range(3))
    judge = GeneralPreferenceModel.from_backbone(others[0], tokenizer)
    reward = BradleyTerryModel.from_backbone(others[1], tokenizer)
    for name, model in (("policy", policy), ("judge", judge), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [{"prompt": f"say {w}", "chosen": f"{w} a", "rejected": "b d c"} for w in "abcdefg"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, (method, options) in RUNS.items():
            for many in ("one", "two"):
                given = method["train"] | COMMON | options | {"output": f"{many}/{name}"}
                Path(f"{many}_{name}.yaml").write_text(yaml.safe_dump(method | {"train": given}))
            train(read_method(f"one_{name}.yaml"))
    torch.set_num_threads(threads)
    # What one process has left in the middle of a round, two go on with.
    begun = folder / "two/continued_pieces"
    shutil.copytree(folder / "one/continued_pieces", begun)
    for step in ("10", "12"):
        shutil.rmtree(begun / f"checkpoints/step-000000{step}")
    launch = [LAUNCH[0], LAUNCH[1], str(ROOT / LAUNCH[2])]
    command = [sys.executable, "-m", *launch, str(ROOT / "tests/llm_processes.py")]
    done = subprocess.run(
        [*command, *(f"two_{name}.yaml" for name in RUNS)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def logged(path, name):
    records = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_take_the_steps_of_one(folder, name):
    one, two = folder / "one" / name, folder / "two" / name
    assert len(logged(one, "loss")) == 12
    for metric in ("loss", "reward", "eval/loss", "eval/win_rate/reference"):
        assert logged(two, metric) == pytest.approx(logged(one, metric), abs=1e-5)
    for metric in ("grad_norm", "residual"):
        assert logged(two, metric) == pytest.approx(logged(one, metric), rel=1e-3)
    ours, theirs = (load_file(run / "model/model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-4)
    if name != "continued_pieces":
        assert json.loads((two / "env.json").read_text())["processes"] == 2


def test_checkpoints_of_pieces_are_whole(folder):
    for name in ("model", "optimizer", "objective"):
        ours, theirs = (
            load_file(folder / many / f"nash_pieces/checkpoints/step-00000010/{name}.safetensors")
            for many in ("two", "one")
        )
        assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in theirs.items()}
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-4)


def test_what_cannot_be_kept_in_pieces_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be scaled as fp16 needs; take bf16"):
        TrainConfig(output=str(tmp_path), shard=True, precision="fp16")


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_other_ways_of_sharding_are_refused(tmp_path, monkeypatch, kind):
    other = SimpleNamespace(distributed_type=DistributedType[kind], log_with=[])
    monkeypatch.setattr("nashpref.llm.training.Accelerator", lambda **options: other)
    with pytest.raises(ValueError, match=f"{kind}.*gpu_processes.yaml and set train.shard"):
        make_accelerator(TrainConfig(output=str(tmp_path)))
