"""`nashpref train`: every method from a file to a saved model; mistakes before anything is written."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nashpref.cli import main
from nashpref.llm.command import read_method, train
from nashpref.llm.methods import METHODS
from nashpref.llm.methods.base import OneRun
from nashpref.llm.methods.iterative import Iterative
from nashpref.llm.methods.online import Online

CONFIGS = Path(__file__).parents[1] / "experiments" / "configs"
PAIRS = [
    {"prompt": "say", "chosen": f"good {w}", "rejected": f"bad {w} thing", "p_chosen": 1.0}
    for w in ("a", "b", "c", "d", "e", "f")
]
RANKINGS = [
    {"prompt": "say", "completions": [f"good {w}", f"fair {w}", "bad"][:k], "ranking": [0, 1, 2][:k]}
    for w, k in (("a", 3), ("b", 2), ("c", 3), ("d", 2))
]
OUTCOMES = [
    {"prompt": "say", "completion": row[kind], "label": kind == "chosen"}
    for row in PAIRS
    for kind in row
    if kind in ("chosen", "rejected")
]
STEPS = [
    {"prompt": "say", "completions": [f"good {w}", f"{v} {w}"], "labels": [True, v == "good"]}
    for w in "abc"
    for v in ("good", "bad")
]
SOFT = [row | {"p_chosen": 0.9} for row in PAIRS]
DATA = {"outcome": "outcomes.jsonl", "process": "steps.jsonl", "gpo": "soft.jsonl"}  # else pairs.jsonl
OPTIONS = {
    "dpo": "beta: 0.1",
    "robust_dpo": "beta: 0.1\nflip_rate: 0.1",
    "ipo": "beta: 0.5",
    "chi_po": "beta: 0.1",
    "c2_dpo": "beta: 0.1\npenalty: 0.01",
    "inpo": "eta: 2.0",
    "sppo": "eta: 2.0",
    "gpo": "eta: 0.5",
    "spin": "eta: 1.0",
    "dno_prct": "eta: 1.0",
}
CONFIG = """
method: {method}
{options}
model: {{tiny: {{layers: 1, width: 16, context: 32}}}}
data: {{train: {data}, evaluate: {data}}}
train: {{output: out, epochs: 4, batch_size: 3, learning_rate: 1e-2, log_every: 1, eval_every: 4}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, rows in (
        ("pairs", PAIRS),
        ("rankings", RANKINGS),
        ("outcomes", OUTCOMES),
        ("steps", STEPS),
        ("soft", SOFT),
    ):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield tmp_path
    torch.set_num_threads(threads)


def configure(method, options=None):
    options = OPTIONS.get(method, "") if options is None else options
    Path("c.yaml").write_text(
        CONFIG.format(method=method, options=options, data=DATA.get(method, "pairs.jsonl"))
    )
    return "c.yaml"


def logged(name, folder="out"):
    records = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [record[name] for record in records if name in record]


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if issubclass(kind, OneRun)])
def test_every_method_learns_and_its_model_is_loaded_again(folder, method):
    out = train(read_method(configure(method)))
    assert logged("eval/loss")[-1] < logged("loss")[0]
    if issubclass(METHODS[method], METHODS["sft"].__mro__[1]):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(out)
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model(torch.tensor([tokenizer("say good a").input_ids])).logits.isfinite().all()
    else:
        model = METHODS[method].kind.from_pretrained(out)
        if method in ("outcome", "process"):
            good, bad = model(["say"] * 2, ["good a\ngood b", "bad a\nbad b"]).tolist()
            assert good > bad
        else:
            assert model(["say"], ["good a"], ["bad a thing"]).item() > 0.5
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "checkpoints",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "model",
    ]
    assert json.loads(Path("out/config.json").read_text())["method"] == method


def test_rankings_as_they_are(folder):
    settings = ["data.train=rankings.jsonl", "data.evaluate=rankings.jsonl"]
    train(read_method(configure("bradley_terry", "k_wise: true"), settings))
    assert logged("eval/loss")[-1] < logged("eval/loss")[0]


def test_a_reference_computed_beforehand_or_at_every_step_is_the_same(folder):
    train(read_method(configure("dpo")))
    train(read_method("c.yaml", ["reference=copy", "train.output=copy"]))
    assert logged("loss", "copy") == pytest.approx(logged("loss"), rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("method", ["dpo", "general"])
def test_adapters_are_trained_and_merged(folder, method):
    pytest.importorskip("peft")
    train(read_method(configure(method), ["model.lora={rank: 4}", "train.epochs=12"]))
    assert logged("eval/loss")[-1] < 0.95 * logged("loss")[0]
    from safetensors import safe_open

    with safe_open("out/model/model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "lora" in name]  # noqa: SIM118
    checkpoint = sorted(Path("out/checkpoints").iterdir())[-1]
    with safe_open(checkpoint / "model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "base_layer" in name]  # noqa: SIM118


@pytest.mark.parametrize(
    ("method", "options", "settings", "message"),
    [
        ("dop", "", [], "c.yaml: method = 'dop': no such method (did you mean 'dpo'?)"),
        ("dpo", "btea: 0.1", [], "c.yaml: no option 'btea' (did you mean 'beta'?)"),
        ("dpo", "", [], "c.yaml: option 'beta' is missing"),
        ("dpo", "beta: -1", [], "c.yaml: beta = -1.0: it must be finite and positive"),
        ("dpo", "beta: 0.1", ["train.epochs=x"], "c.yaml: train: epochs = 'x': an integer is expected"),
        ("dpo", "beta: 0.1", ["train.lerning_rate=1"], "did you mean 'learning_rate'?"),
        ("dpo", "beta: 0.1", ["seed"], "--set seed: write it as NAME=VALUE"),
        ("dpo", "beta: 0.1", ["model.name=x"], "give one of 'name'"),
        ("dpo", "beta: 0.1", ["data.train=none.jsonl"], "none.jsonl: No such file"),
        ("dpo", "beta: 0.1", ["data.train=rankings.jsonl", "data.columns={prompt: x}"], "x: is missing"),
        ("sft", "", ["data.train=rankings.jsonl"], "records[0] is a Ranking"),
        ("general", "planes: 0", [], "planes = 0"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, capsys, method, options, settings, message):
    configure(method, options)
    before = sorted(folder.rglob("*"))
    code = main(["train", "c.yaml", *(word for setting in settings for word in ("--set", setting))])
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_margins_and_soft_labels_that_a_method_does_not_know_are_refused(folder):
    for column, method in (("margin", "ipo"), ("p_chosen", "spin")):
        rows = [*PAIRS[:2], PAIRS[2] | {column: 0.7}]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(ValueError, match=f"pair 2 has .*{column}|pair 2 has a margin"):
            train(read_method(configure(method)))
    assert not Path("out").exists()


def test_bad_rows_are_left_out_and_counted_on_demand(folder, capsys):
    rows = [json.dumps(PAIRS[0] | {"p_chosen": 7}), *map(json.dumps, PAIRS)]
    Path("pairs.jsonl").write_text("\n".join(rows) + "\n")
    configure("sft")
    assert main(["train", "c.yaml"]) == 2
    assert "pairs.jsonl:1: p_chosen = 7.0" in capsys.readouterr().err
    assert main(["train", "c.yaml", "--skip-bad"]) == 0
    assert "1 bad row left out" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_exits_1(folder, capsys):
    configure("ipo", "beta: 1e-30")
    assert main(["train", "c.yaml"]) == 1
    assert "at step 1" in capsys.readouterr().err


def test_another_configuration_does_not_take_over_the_folder(folder, capsys):
    train(read_method(configure("dpo")))
    assert main(["train", "c.yaml", "--set", "beta=0.2"]) == 2
    assert "beta: 0.1 there, 0.2 now" in capsys.readouterr().err
    assert main(["train", "c.yaml"]) == 0  # the same one is done already, and says so again
    assert capsys.readouterr().out == "wrote out/model\n"


@pytest.fixture
def own_process(folder):
    """The real command, on one thread as in this process."""

    def start(*words, launcher=()):
        command = [sys.executable, "-m", *launcher, *("-m" for _ in launcher[:1]), "nashpref.cli", *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def test_two_processes_give_the_losses_of_one(own_process):
    path = configure("dpo")
    launch = ["accelerate.commands.launch", "--config_file", str(CONFIGS / "two_cpu_processes.yaml")]
    two = own_process("train", path, "--set", "train.output=two", launcher=launch)
    said = two.communicate()[1]
    assert two.returncode == 0, said
    assert json.loads(Path("two/env.json").read_text())["processes"] == 2
    train(read_method(path))
    for name in ("loss", "eval/loss"):
        assert logged(name, "two") == pytest.approx(logged(name), abs=1e-5)
    assert logged("grad_norm", "two") == pytest.approx(logged("grad_norm"), rel=1e-4)


def test_ctrl_c_ends_the_command_with_130_and_the_same_command_goes_on(own_process):
    path = configure("dpo")
    settings = ["train.max_steps=300", "train.schedule=cosine"]
    words = ["train", path, *(word for setting in settings for word in ("--set", setting))]
    running = own_process(*words)
    while not (Path("out/metrics.jsonl").exists() and len(logged_lines("out")) > 10):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130, said
    assert re.search(r"nashpref: interrupted; the same command goes on from out/checkpoints/step-\d+\n", said)
    assert "Traceback" not in said
    assert not Path("out/model").exists()
    assert 0 < len(logged("loss")) < 300
    assert main(words) == 0
    train(read_method(path, [*settings, "train.output=peaceful"]))
    assert logged("loss") == logged("loss", "peaceful")
    weights = [Path(run, "model/model.safetensors").read_bytes() for run in ("out", "peaceful")]
    assert weights[0] == weights[1]


def logged_lines(folder):
    return Path(folder, "metrics.jsonl").read_text().splitlines()


# --- the configurations in the box ---

README = (CONFIGS.parents[1] / "README.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `(\w+)` \|.*\| `(\w+\.yaml)`(?: with `([^`]+)`)? \|$", README, re.MULTILINE)


def test_every_method_has_a_row_in_the_readme():
    assert [method for method, _, _ in TABLE] == list(METHODS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the others begin with."""
    folder = tmp_path_factory.mktemp("trained")
    with at_the_root():
        return {
            name: run_config(f"{name}_cpu.yaml", folder / name, "train.max_steps=2")
            for name in ("sft", "general_preference", "rankings")
        }


@pytest.mark.parametrize(("method", "config", "settings"), TABLE, ids=[method for method, _, _ in TABLE])
def test_every_row_of_the_readme_runs(tmp_path, trained, method, config, settings):
    words = [word for word in settings.split() if word != "--set"]
    if not issubclass(METHODS[method], OneRun):
        judge = ("reward", "rankings") if method == "rlhf" else ("preference", "general_preference")
        for option, name in (("model.name", "sft"), judge):
            assert f"results/{name}_cpu/model" in (CONFIGS / config).read_text()
            words.append(f"{option}={trained[name]}")
    if issubclass(METHODS[method], Iterative):
        words += ["rounds.count=1", "rounds.max_new_tokens=4"]
    online = issubclass(METHODS[method], Online)
    words += ["train.rounds=1", "train.max_new_tokens=4"] if online else ["train.max_steps=2"]
    with at_the_root():
        assert run_config(config, tmp_path, *words) == tmp_path / "model"
    assert json.loads((tmp_path / "config.json").read_text())["method"] == method


def run_config(name, output, *settings):
    """It, from where the README says."""
    given = [*settings, f"train.output={output}"]
    return train(read_method(f"experiments/configs/{name}", given))


@contextlib.contextmanager
def at_the_root():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.chdir(CONFIGS.parents[1]):
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_[cg]pu.yaml")), ids=lambda path: path.stem)
def test_the_configurations_in_the_box_are_valid(path):
    assert read_method(path).train.output == f"results/{path.stem}"
    assert path.stem.endswith("_gpu") or path.name in {config for _, config, _ in TABLE}
