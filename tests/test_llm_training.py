"""The loop: the steps are AdamW's however they are divided, and a run that was cut short is the same run."""

import importlib.util
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from nashpref.llm.batching import LengthBuckets
from nashpref.llm.completions import Asked
from nashpref.llm.encoding import Encoder, Tokens, collate
from nashpref.llm.objectives import Demonstrations
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.postmortem import save_batch
from nashpref.llm.training import Interrupted, NonFiniteLoss, TrainConfig, fit

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other people's trackers


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Regression(nn.Module):
    def __init__(self, dropout=0.3, width=16):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 2)

    def forward(self, batch):
        x, y = batch
        return {"loss": (self.net(x)[:, 0] - y).square(), "target": y}


X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
EXAMPLES = [(x, x.sum()) for x in X]


def together(rows):
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


def run(folder, objective=None, examples=EXAMPLES, evaluate=None, **options):
    objective = objective or Regression()
    given = {"max_steps": 12, "batch_size": 8, "learning_rate": 1e-2, "log_every": 1, **options}
    config = TrainConfig(output=str(folder), **given)
    batches = LengthBuckets([1 + i % 3 for i in range(len(examples))], config.batch_size, seed=2)
    records = fit(objective, examples, batches, together, config, evaluate=evaluate)
    return objective, records


def weights(objective):
    return torch.cat([p.detach().flatten() for p in objective.parameters()])


def test_the_steps_are_those_of_adamw(tmp_path):
    """Against a loop of six lines: clipping, warm-up, linear decay, and no decay of vectors."""
    objective, records = run(tmp_path, Regression(0.0), warmup_steps=3, weight_decay=0.1, max_grad_norm=0.5)
    other = Regression(0.0)
    matrices, vectors = ([p for p in other.parameters() if (p.ndim >= 2) == m] for m in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    order = iter(LengthBuckets([1 + i % 3 for i in range(30)], 8, seed=2))
    for k in range(12):
        try:
            indices = next(order)
        except StopIteration:
            order = iter(order_again(k))
            indices = next(order)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(k / 3, (12 - k) / 9)
        loss = other(together([EXAMPLES[i] for i in indices]))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        assert records[k]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert records[k]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        assert records[k]["learning_rate"] == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
    torch.testing.assert_close(weights(objective), weights(other), rtol=1e-5, atol=1e-6)
    assert any(record["grad_norm"] > 0.5 for record in records)


def order_again(step):
    batches = LengthBuckets([1 + i % 3 for i in range(30)], 8, seed=2)
    batches.epoch = step // len(batches)
    return batches


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_pieces_make_no_difference(tmp_path, micro):
    whole, expected = run(tmp_path / "whole", Regression(0.0))
    pieces, records = run(tmp_path / "pieces", Regression(0.0), micro_batch_size=micro)
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=1e-5, atol=1e-6)
    for name in ("loss", "target", "grad_norm"):
        assert [r[name] for r in records] == pytest.approx([r[name] for r in expected], rel=1e-4, abs=1e-6)


def test_schedules(tmp_path):
    for schedule, last in (
        ("constant", 1.0),
        ("linear", 1 / 4),
        ("cosine", (1 + math.cos(3 / 4 * math.pi)) / 2),
    ):
        # The scheduler named "constant" has no warm-up of its own.
        _, records = run(tmp_path / schedule, max_steps=4, schedule=schedule)
        assert records[-1]["learning_rate"] == pytest.approx(1e-2 * last)


@pytest.mark.parametrize("at", [1, 5, 11])
def test_ctrl_c_saves_and_the_same_call_goes_on_bit_for_bit(tmp_path, at):
    expected, records = run(tmp_path / "peaceful")
    steps = 0

    def press():
        nonlocal steps
        steps += 1
        if steps == at:
            signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(Interrupted, match=f"step-{at:08d}"):
        run(tmp_path / "cut", evaluate=press, eval_every=1)
    resumed, again = run(tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(expected))
    losses = [record["loss"] for record in again if "loss" in record]
    assert losses == [record["loss"] for record in records]


def test_ctrl_c_in_the_last_step_is_too_late(tmp_path):
    _, records = run(tmp_path, evaluate=lambda: signal.raise_signal(signal.SIGINT) or {})
    assert records[-1]["step"] == 12


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    expected, _ = run(tmp_path / "peaceful")
    run(tmp_path / "run", save_every=4, keep_checkpoints=3)
    for step in (12, 8):
        file = tmp_path / f"run/checkpoints/step-{step:08d}/optimizer.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
    resumed, records = run(tmp_path / "run", save_every=4, keep_checkpoints=3)
    said = capsys.readouterr().err
    assert "step-00000012/optimizer.safetensors: damaged" in said
    assert said.count("going on from step 4") == 2
    assert torch.equal(weights(resumed), weights(expected))
    assert [record["step"] for record in records] == list(range(1, 13))


def test_twenty_kills_and_resumes_change_nothing(tmp_path):
    program = Path(__file__).with_name("llm_kills.py")
    command = [sys.executable, str(program), str(tmp_path), "20", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] == 20
    assert result["during_save"] >= 10  # each left half a checkpoint
    assert result["files"] == ["generators-0.safetensors", "model.safetensors", "optimizer.safetensors"]
    assert result["equal"] == result["files"]
    assert result["same_metrics"]
    assert result["logged"] == 60


def test_other_options_are_refused_and_nothing_is_touched(tmp_path):
    run(tmp_path, max_steps=4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options, what in (
        ({"max_steps": 4, "learning_rate": 0.5}, r"train.learning_rate: 0.01 there, 0.5 now"),
        ({"max_steps": 5}, "train.max_steps: 4 there, 5 now"),
    ):
        with pytest.raises(ValueError, match=what):
            run(tmp_path, **options)
    (tmp_path / "config.json").unlink()  # the checkpoint knows it too
    with pytest.raises(ValueError, match=r"train.seed: 0 there, 3 now"):
        run(tmp_path, max_steps=4, seed=3)
    before.pop(tmp_path / "config.json")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(tmp_path, max_steps=4, log_every=3, keep_checkpoints=1)


def test_another_model_is_refused(tmp_path):
    run(tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=r"checkpoints of another model .net.0.bias .* is in one only"):
        run(tmp_path, Regression(width=8), max_steps=2)


def test_half_a_line_of_metrics_is_no_obstacle(tmp_path):
    run(tmp_path, save_every=4, keep_checkpoints=3)
    (tmp_path / "checkpoints/step-00000012/manifest.json").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    run(tmp_path, save_every=4, keep_checkpoints=3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named_and_the_step_not_taken(tmp_path, bad):
    examples = [*EXAMPLES[:29], (EXAMPLES[29][0], torch.tensor(bad))]
    objective = Regression()
    with pytest.raises(NonFiniteLoss, match=r"loss = (nan|inf) at step [1-4], examples .*29"):
        run(tmp_path, objective, examples=examples, batch_size=8)
    assert torch.isfinite(weights(objective)).all()


def test_the_batch_is_kept_when_the_loss_is_not_finite(tmp_path):
    """Exactly the examples of the step, which can be read without this library."""
    examples = [*EXAMPLES[:29], (EXAMPLES[29][0], torch.tensor(math.nan))]
    with pytest.raises(NonFiniteLoss) as caught:
        run(tmp_path, examples=examples, batch_size=8, micro_batch_size=3)
    kept = caught.value.batch
    assert str(kept) in str(caught.value)
    content = json.loads(kept.read_text())
    step = int(kept.stem.removeprefix("nonfinite-"))
    assert content["what"].startswith(f"loss = nan at step {step}, examples ")
    order = order_again(0)
    assert content["examples"] == list(order)[step - 1]
    tensors = load_file(kept.with_suffix(".safetensors"))
    x, y = together([examples[i] for i in content["examples"]])
    assert torch.equal(tensors["batch.0"], x)
    assert torch.equal(tensors["batch.1"].nan_to_num(7.0), y.nan_to_num(7.0))
    assert content["batch"][0] == {"tensor": "batch.0", "shape": [8, 4]}


def test_a_batch_of_texts_and_records_is_kept(tmp_path):
    asked = Asked(3, [{"role": "user", "content": "why?"}], 5)
    tokens = Tokens(*torch.arange(12).view(3, 2, 2))
    kept = save_batch(tmp_path, "nonfinite-1", "loss = nan", [3], {"asked": [asked], "t": tokens, "f": print})
    batch = json.loads(kept.read_text())["batch"]
    assert batch["asked"] == [{"index": 3, "prompt": [{"role": "user", "content": "why?"}], "length": 5}]
    assert batch["t"]["attention_mask"] == {"tensor": "batch.t.attention_mask", "shape": [2, 2]}
    assert batch["f"] == repr(print)
    assert load_file(tmp_path / "nonfinite-1.safetensors")["batch.t.attention_mask"].tolist() == [
        [4, 5],
        [6, 7],
    ]


def test_a_batch_that_cannot_be_kept_is_no_reason_to_hide_the_loss(tmp_path, capsys, monkeypatch):
    def full(*words):
        raise OSError("No space left on device")

    monkeypatch.setattr("nashpref.llm.training.save_batch", full)
    with pytest.raises(NonFiniteLoss, match=r"look at the examples$"):
        run(tmp_path, examples=[(x, y * math.nan) for x, y in EXAMPLES])
    assert "the batch could not be kept: No space left" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    class Root(Regression):
        def forward(self, batch):
            return {"loss": (self.net(batch[0])[:, 0] * 0.0).sqrt()}

    objective = Root()
    with pytest.raises(NonFiniteLoss, match=r"norm is nan at step 1.*nonfinite-00000001\.json"):
        run(tmp_path, objective)
    kept = json.loads((tmp_path / "nonfinite-00000001.json").read_text())
    assert kept["examples"] == next(iter(order_again(0)))
    assert torch.isfinite(weights(objective)).all()


def test_evaluation_disturbs_nothing(tmp_path):
    expected, _ = run(tmp_path / "without")
    modes = []

    def evaluate():
        modes.append((objective.training, torch.is_grad_enabled()))
        return {"drawn": torch.rand(())}

    objective = Regression()
    _, records = run(tmp_path / "with", objective, evaluate=evaluate, eval_every=5)
    assert torch.equal(weights(objective), weights(expected))
    assert [record["step"] for record in records if "eval/drawn" in record] == [5, 10, 12]
    assert set(modes) == {(False, False)}
    assert objective.training


def test_the_run_is_written_down(tmp_path):
    run(tmp_path, max_steps=2, seed=5)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"]["seed"] == 5
    assert config["train"]["learning_rate"] == 1e-2
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["seed"] == 5


def test_tensorboard_has_what_the_file_has(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, records = run(tmp_path, max_steps=3, trackers=("tensorboard",))
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    for name in ("loss", "grad_norm", "learning_rate"):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(record["step"], pytest.approx(record[name])) for record in records]


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_tracker_that_is_not_installed_is_named(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=f"'{name}' is not installed: install it, or leave it out"):
        run(tmp_path, trackers=(name,))
    assert not list(tmp_path.iterdir())


def test_nothing_to_train(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        run(tmp_path, Regression().requires_grad_(False))
    with pytest.raises(ValueError, match="no examples"):
        fit(Regression(), [], [], together, TrainConfig(output=str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(tmp_path / "file")


def language_model(folder, **options):
    texts = ["a b c d", "b c", "d a b c a", "c"]
    tokenizer = tiny_tokenizer(texts)
    encoder = Encoder(tokenizer)
    examples = [encoder.encode("a", text) for text in texts]
    objective = Demonstrations(tiny_causal_lm(tokenizer, width=16))
    config = TrainConfig(
        output=str(folder), epochs=3, batch_size=4, learning_rate=1e-2, log_every=1, **options
    )
    batches = LengthBuckets([len(e) for e in examples], 4)
    records = fit(objective, examples, batches, lambda rows: collate(rows, encoder.pad_id), config)
    return objective, [record["loss"] for record in records]


def test_gradient_checkpointing_and_bfloat16(tmp_path):
    _, expected = language_model(tmp_path / "plain")
    objective, losses = language_model(tmp_path / "checkpointing", gradient_checkpointing=True)
    assert objective.model.base_model.layers[0].gradient_checkpointing
    assert losses == pytest.approx(expected, rel=1e-6)
    assert expected[-1] < expected[0]
    AcceleratorState._reset_state()  # one precision a process, as far as accelerate is concerned
    _, losses = language_model(tmp_path / "bf16", precision="bf16")
    AcceleratorState._reset_state()
    assert losses == pytest.approx(expected, rel=2e-2)
    assert losses != pytest.approx(expected, rel=1e-7)
