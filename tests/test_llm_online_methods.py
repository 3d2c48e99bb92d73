"""`nashpref train` with rules of the exact core: from prompts and a preference model to a saved policy."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nashpref as npf
from nashpref.cli import main
from nashpref.llm.command import read_method, train
from nashpref.llm.inputs import Lora
from nashpref.llm.methods.online import ALGORITHMS
from nashpref.llm.nash import NashConfig, NashTrainer
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.policies import Store
from nashpref.llm.preferences import BradleyTerryModel, GeneralPreferenceModel
from nashpref.named_rules import RULES

OPTIONS = {"best-response": {"beta": 0.5}, "ogda": {}, "onpo": {}, "ompo": {}, "egpo": {}, "nash-mp": {}}
OPTIONS |= {name: {"eta": 0.5} for name in ("mwu", "mpo", "gda", "mtpo", "mnpo")}
CONFIG = """
method: nash
rule: {{name: nash-md, beta: 0.1, eta: [5.0, 2.5, 1e-1]}}
preference: judge
model: {{name: policy}}
data: {{train: prompts.jsonl, evaluate: prompts.jsonl, max_length: 24}}
train:
  {{output: out, rounds: 3, updates: 2, samples: 4, max_new_tokens: 4, batch_size: 4, learning_rate: 1e-2,
    log_every: 1, save_every: 1}}
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A policy, and a preference model that knows its words, both at random."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = tiny_tokenizer(["say a b c d", "tell e f"])
    policy = tiny_causal_lm(tokenizer, layers=1, width=16, context=32, seed=0)
    judge, reward = (
        kind.from_backbone(tiny_causal_lm(tokenizer, layers=1, width=16, context=32, seed=1), tokenizer)
        for kind in (GeneralPreferenceModel, BradleyTerryModel)
    )
    for name, model in (("policy", policy), ("judge", judge), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ("policy", "judge", "reward"):
        Path(name).symlink_to(saved / name)
    rows = [{"prompt": f"say {w}", "chosen": "a", "rejected": "b"} for w in "abcdef"]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:2]]))
    Path("c.yaml").write_text(CONFIG.format())
    yield tmp_path
    torch.set_num_threads(threads)


def logged(name, folder="out"):
    records = map(json.loads, Path(folder, "metrics.jsonl").read_text().splitlines())
    return [record[name] for record in records if name in record]


def test_the_command_is_the_trainer(folder):
    """Each prompt once, the reference is the model as it was, and what is saved is what was trained."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = train(read_method("c.yaml"))
    method = read_method("c.yaml", ["train.output=other"])
    assert method.train.max_length == method.data.max_length == 24
    model = AutoModelForCausalLM.from_pretrained("policy")
    trainer = NashTrainer(
        model,
        npf.NashMD(beta=0.1, eta=lambda t: [5.0, 2.5, 0.1][min(t, 2)]),
        GeneralPreferenceModel.from_pretrained("judge"),
        method.train,
        [f"say {w}" for w in "abcdef"],
        AutoTokenizer.from_pretrained("policy"),
    )
    trainer.train(progress=False)
    assert logged("loss") == pytest.approx(logged("loss", "other"), rel=1e-5)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    for ours, theirs in zip(loaded.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert logged("eval/win_rate/reference")
    described = json.loads(Path("out/config.json").read_text())
    assert described["rule"] == {"name": "nash-md", "beta": 0.1, "eta": [5.0, 2.5, "1e-1"]}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_name(folder, name):
    rule = {"name": name, **OPTIONS.get(name, {"beta": 0.1})}
    settings = [f"rule={json.dumps(rule)}", "train.rounds=1", "train.updates=1", "data.evaluate=null"]
    rule = read_method("c.yaml", settings).update_rule()
    assert type(rule).__name__.lower() == name.replace("-", "")
    train(read_method("c.yaml", settings))
    assert logged("round")[-1] == 1.0


@pytest.mark.parametrize(
    "environment",
    [
        "{turns: 2, lines: [tell e]}",
        "{turns: 3}",
        "{turns: 2, model: policy, instruction: say f}",
    ],
    ids=["a script", "as recorded", "a model"],
)
def test_dialogues(folder, environment):
    Path("prompts.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"\n\nHuman: say {w}\n\nAssistant: b\n\nHuman: tell e\n\nAssistant:"})
            + "\n"
            for w in "abc"
        )
    )
    settings = ["rule={name: mtpo, beta: 0.1, eta: 1.0}", f"environment={environment}", "train.lines=2"]
    train(read_method("c.yaml", [*settings, "train.rounds=1", "train.max_length=null", "data.max_length=64"]))
    assert logged("eval/win_rate/reference")
    (kept,) = Path("out/responses").glob("*.jsonl")
    first = json.loads(kept.read_text().splitlines()[0])
    said = first["responses"][0]
    assert [message["role"] for message in said][:2] == ["assistant", "user"]
    if "model" not in environment:
        assert first["prompt"] == [{"role": "user", "content": "say a"}] or len(first["prompt"]) == 3
        assert said[1]["content"] == "tell e"


def test_the_same_command_goes_on_and_another_rule_does_not(folder, capsys):
    assert main(["train", "c.yaml"]) == 0
    whole = Path("out/model/model.safetensors").read_bytes()
    assert main(["train", "c.yaml"]) == 0
    assert Path("out/model/model.safetensors").read_bytes() == whole
    shutil.rmtree("out/checkpoints/step-00000006")  # as if it had been cut off in the middle of a round
    first = Path("out/metrics.jsonl").read_text().splitlines()[4]
    assert main(["train", "c.yaml"]) == 0
    assert Path("out/metrics.jsonl").read_text().splitlines()[4] == first  # with its own seconds
    assert Path("out/model/model.safetensors").read_bytes() == whole
    assert main(["train", "c.yaml", "--set", "rule.eta=5"]) == 2
    assert "rule.eta" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_adapters_are_trained_and_merged(folder):
    pytest.importorskip("peft")
    from safetensors import safe_open

    out = train(read_method("c.yaml", ["model.lora={rank: 2}"]))
    with safe_open(out / "model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "lora" in name]  # noqa: SIM118


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rule={beta: 1}"], "c.yaml: rule: no rule ''; rules: best-response"),
        (["rule={name: nash_md, beta: 1}"], "c.yaml: rule: no rule 'nash_md' (did you mean 'nash-md'?)"),
        (["rule={name: gda, btea: 1}"], "c.yaml: rule: gda has no option 'btea' (did you mean 'beta'?)"),
        (["rule={name: gda, beta: [0.1, 0.2]}"], "one number is needed, it is the game's"),
        (["rule.eta=[5, 20]"], "c.yaml: rule: eta * beta = 2 > 1"),
        (["rule.eta=[5, fast]"], "a number, a list of numbers or a callable"),
        (["train.rounds=0"], "c.yaml: train: rounds = 0"),
        (["train.estimator=best"], "c.yaml: train: estimator = 'best': one of 'regression'"),
        (["train.lora={rank: 2}"], "c.yaml: train: lora is set by model.lora"),
        (["train.max_length=8"], "c.yaml: train: max_length is set by data.max_length"),
        (["train.max_steps=8"], "max_steps = 8: rounds decide how long training takes"),
        (["environment={turns: 0}"], "c.yaml: environment: turns = 0"),
        (["environment={turns: 3, lines: [why]}"], "environment: lines: 1 for 3 turns; 2 are needed"),
        (["environment={turns: 3, model: policy}"], "environment: model and instruction"),
        (["environment={turns: 2, lines: [e], model: policy, instruction: b}"], "lines and model"),
        (["environment={turns: 2}", "train.lines=9"], "lines = 9: from 1 to samples = 4"),
        (["preference=policy"], "policy: holds a LlamaForCausalLM; one of"),
        (["preference=none"], "none: is no folder"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(folder, capsys, settings, message):
    before = sorted(folder.rglob("*"))
    assert main(["train", "c.yaml", *(word for setting in settings for word in ("--set", setting))]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_its_name(folder, name):
    options = {"name": name, "beta": {"start": 0.1, "target": 1.0} if name == "ppo" else "5e-2"}
    options |= {"eta": 1.0} if name == "kimi" else {}
    Path("r.yaml").write_text(
        CONFIG.split("rule")[0].format().replace("nash", "rlhf")
        + f"algorithm: {json.dumps(options)}\nreward: reward\n"
        + "model: {name: policy}\ndata: {train: prompts.jsonl, evaluate: prompts.jsonl}\n"
        + "train: {output: out, rounds: 2, samples: 4, max_new_tokens: 4, batch_size: 4, log_every: 1}\n"
    )
    assert type(read_method("r.yaml").gradient()).__name__.lower() == name.replace("-", "")
    assert main(["train", "r.yaml"]) == 0
    assert main(["train", "r.yaml"]) == 0
    assert len(logged("loss")) == len(logged("reward")) == 2
    assert logged("eval/reward")
    assert Path("out/model/model.safetensors").exists()
    for settings, message in (
        ("algorithm.name=grop", "algorithm: no 'grop' (did you mean 'grpo'?)"),
        ("algorithm.btea=1", "algorithm: no option 'btea' (did you mean 'beta'?)"),
        ("reward=judge", "judge: holds a GeneralPreferenceModel, which has no rewards"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(read_method("r.yaml", [settings, "train.output=other"]))


# --- what crashed, or was wrong, in TRL's NashMDTrainer ---


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
@pytest.mark.parametrize("estimator", ["regression", "policy_gradient"])
def test_lists_evaluation_adapters_and_a_plain_function_together(tmp_path, estimator):
    """A model that was never on a disk, with its true base as the reference."""
    pytest.importorskip("peft")

    def judge(prompts, a, b):
        return [(1.0 + (x > y) - (x < y)) / 2.0 for x, y in zip(a, b, strict=True)]

    tokenizer = tiny_tokenizer(["say a b c d"])
    model = tiny_causal_lm(tokenizer, layers=1, width=16, context=32)
    base = copy.deepcopy(model)
    args = NashConfig(
        output=str(tmp_path), rounds=3, samples=4, max_new_tokens=4, batch_size=2, learning_rate=1e-2,
        log_every=1, eval_every=1, lora=Lora(rank=2), estimator=estimator,
    )  # fmt: skip
    rule = npf.NashMD(beta=0.1, eta=[5.0, 2.5])
    prompts = ["say a", "say b", "say c"]
    trainer = NashTrainer(model, rule, judge, args, prompts, tokenizer, eval_dataset=prompts[:2])
    log = trainer.train(progress=False)
    assert [record["step"] for record in log if "eval/win_rate/reference" in record] == [1, 2, 3]
    ids = torch.tensor([[4, 5, 6]])
    reference = trainer.objective.policy("reference")
    with torch.no_grad(), trainer.space.store.loaded(reference):
        assert torch.equal(trainer.model(ids).logits, base(ids).logits)
    assert not torch.equal(trainer.model(ids).logits, base(ids).logits)
    # The opponent is π^{1−ηβ} μ^{ηβ} with the η of the round, and both factors are there.
    opponent = trainer.objective.policy("mixture")
    assert [weight for _, weight in opponent.parts] == pytest.approx([0.75, 0.25])
    assert opponent.parts[1][0] is reference


def test_under_autocast_a_policy_is_itself():
    """Autocast keeps a parameter's cast, and would take the opponent for the policy."""
    tokenizer = tiny_tokenizer(["say a b c d"])
    model = tiny_causal_lm(tokenizer, layers=1, width=16, context=32)
    store, ids = Store(model), torch.tensor([[4, 5, 6]])
    start = store.take()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        current = model(ids).logits
        with store.loaded(start):
            first = model(ids).logits
        again = model(ids).logits
    with torch.no_grad(), store.loaded(start), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
    assert torch.equal(first, expected)
    assert torch.equal(again, current)
    assert not torch.equal(first, current)


# --- names at the top ---


def test_the_names_at_the_top_are_loaded_when_they_are_asked_for():
    program = """
import sys, nashpref.llm as llm
assert "torch" not in sys.modules and "transformers" not in sys.modules
assert set(llm.__all__) <= set(dir(llm))
from nashpref.llm import *
for name in llm.__all__:
    assert getattr(llm, name).__name__ == name, name
try:
    llm.NashTrainr
except AttributeError as error:
    assert "no attribute 'NashTrainr'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
