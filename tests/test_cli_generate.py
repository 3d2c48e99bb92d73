"""`nashpref generate` as a user meets it: records, one-line errors, nothing overwritten, runs that go on."""

import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import nashpref as npf  # noqa: E402
from nashpref.cli import main  # noqa: E402
from nashpref.llm import generate_command  # noqa: E402
from nashpref.llm.decoding import FarmaModel, PrefixValueModel  # noqa: E402
from nashpref.llm.loading import load_preference, load_reward  # noqa: E402
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer  # noqa: E402
from nashpref.llm.preferences import BradleyTerryModel, GeneralPreferenceModel  # noqa: E402

PROMPTS = ["x", "y x", "x y y", "y", "x x"]
KINDS = (BradleyTerryModel, PrefixValueModel, FarmaModel, GeneralPreferenceModel)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer(["a b c", "x y"])
    policy = tiny_causal_lm(tokenizer, layers=1, width=16, context=32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=generator)
    for kind in KINDS:
        model = kind.from_backbone(policy, tokenizer)
        with torch.no_grad():
            model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
        model.save_pretrained(folder / kind.__name__)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    lines = [json.dumps(row) for row in [*rows, rows[0]]]  # a prompt that is there twice is answered once
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def generate(models, tmp_path, monkeypatch, capsys):
    """Exit status, stderr and the records that were written."""
    monkeypatch.chdir(tmp_path)
    for entry in models.iterdir():
        (tmp_path / entry.name).symlink_to(entry)

    def run(*arguments, out="out.jsonl"):
        given = ["generate", "policy", "--data", "prompts.jsonl", "--out", out, "--max-new-tokens", 4]
        try:
            code = main([str(argument) for argument in [*given, *arguments]])
        except SystemExit as stop:
            code = stop.code
        path = tmp_path / out
        records = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if path.exists()
            else None
        )
        return code, capsys.readouterr().err, records

    return run


METHODS = {
    "sample": ["--samples", 3],
    "greedy": [],
    "best_of_n": ["--reward", "BradleyTerryModel", "--samples", 4],
    "bradley_terry": ["--preference", "GeneralPreferenceModel", "--samples", 4],
    "equilibrium": ["--preference", "GeneralPreferenceModel", "--samples", 4, "--beta", 0.3],
    "guided": ["--reward", "FarmaModel", "--beta", 0.5, "--top-k", 4, "--min-p", 0.01],
    "cards": ["--reward", "BradleyTerryModel", "--beta", 1, "--goal", 0.5, "--floor", 0, "--entropy", 1],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_every_prompt_once(generate, method, tmp_path):
    code, err, records = generate("--method", method, *METHODS[method])
    assert code == 0, err
    assert [record["prompt"] for record in records] == PROMPTS
    wanted = 3 if method == "sample" else 1
    assert {len(record["responses"]) for record in records} == {wanted}
    assert len({tuple(record["responses"]) for record in records}) > 1
    assert not list(tmp_path.glob("*.partial"))
    again = generate("--method", method, *METHODS[method], out="again.jsonl")[2]
    assert again == records
    if method not in ("greedy", "guided", "cards"):
        assert generate("--method", method, *METHODS[method], "--seed", 1, out="other.jsonl")[2] != records


@pytest.mark.parametrize("kind", ["BradleyTerryModel", "PrefixValueModel", "FarmaModel"])
def test_every_kind_of_reward_guides_and_chooses(generate, kind):
    code, err, guided = generate("--method", "guided", "--reward", kind, "--beta", 0.2, "--samples", 2)
    assert code == 0, err
    assert {len(record["responses"]) for record in guided} == {2}
    code, err, best = generate("--method", "best_of_n", "--reward", kind, out="best.jsonl")
    assert code == 0, err
    reward = load_reward(kind)
    for record in best:
        assert len(record["candidates"]) == 16
        scores = reward.rewards([record["prompt"]] * 16, record["candidates"])
        np.testing.assert_allclose(record["scores"], scores, atol=1e-5)
        assert record["responses"] == [record["candidates"][int(np.argmax(record["scores"]))]]


def test_the_mixture_is_the_equilibrium_of_the_preference(generate):
    _, _, records = generate("--method", "equilibrium", *METHODS["equilibrium"])
    preference = load_preference("GeneralPreferenceModel")
    for record in records:
        P = preference.matrix(record["prompt"], record["candidates"])
        star = npf.equilibrium(npf.MatrixGame(P), 0.3).policy
        np.testing.assert_allclose(record["mixture"], star, atol=1e-4)
        np.testing.assert_allclose(record["scores"], P.mean(axis=1), atol=1e-5)
        assert record["responses"][0] in record["candidates"]
        assert max(record["mixture"]) < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "best"], "--method best: no such method; choose from sample, greedy"),
        (["--method", "best_of_n"], "--method best_of_n needs --reward"),
        (["--method", "guided", "--reward", "FarmaModel"], "--method guided needs --beta"),
        (["--method", "greedy", "--samples", 2], "--samples 2: --method greedy has no use for it"),
        (["--min-p", 0.1], "--min-p 0.1: --method sample has no use for it"),
        (["--max-new-tokens", 0], "--max-new-tokens 0: it must be at least 1"),
        (["--max-new-tokens", 99], "--max-new-tokens 99: the policy reads 32 tokens in all"),
        (["--temperature", 0], "--temperature 0.0: it must be finite and positive"),
        (
            ["--method", "best_of_n", "--reward", "policy"],
            "policy: holds a LlamaForCausalLM, which has no rewards",
        ),
        (["--method", "best_of_n", "--reward", "nowhere"], "nowhere: is no folder"),
        (["--method", "equilibrium", "--preference", "FarmaModel"], "FarmaModel: holds a FarmaModel; one of"),
        (["--column", "prompt"], "--column prompt: write it as FIELD=COLUMN"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--out", "no/where.jsonl"], "there is no directory no"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(generate, arguments, message, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    code, err, records = generate(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
    assert records is None
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_is_overwritten_unless_asked(generate, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"mine": 1}\n', encoding="utf-8")
    code, err, records = generate()
    assert code == 2
    assert "exists already" in err
    assert records == [{"mine": 1}]
    code, _, records = generate("--force")
    assert code == 0
    assert [record["prompt"] for record in records] == PROMPTS


def test_an_interrupted_run_goes_on_to_the_same_records(generate, tmp_path, monkeypatch):
    options = ["--samples", 2, "--batch-size", 4]
    whole = generate(*options, out="whole.jsonl")[2]
    made = generate_command.answers

    def interrupted(settings):
        answer, calls = made(settings), []

        def once(prompts, generator):
            calls.append(prompts)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return answer(prompts, generator)

        return once

    with monkeypatch.context() as patch:
        patch.setattr(generate_command, "answers", interrupted)
        code, err, records = generate(*options)
    assert code == 130
    assert "after 2 of 5 prompts, kept in out.jsonl.partial" in err
    assert records is None
    partial = tmp_path / "out.jsonl.partial"
    kept = partial.read_bytes()

    code, err, records = generate(*options, "--seed", 1)
    assert code == 2
    assert "is of a run with other settings" in err
    assert partial.read_bytes() == kept

    partial.write_bytes(kept[:-9])  # killed in the middle of a line, and so of a batch
    asked = []

    def watched(settings):
        answer = made(settings)
        return lambda prompts, generator: asked.extend(prompts) or answer(prompts, generator)

    monkeypatch.setattr(generate_command, "answers", watched)
    assert generate(*options)[2] == whole
    assert asked == PROMPTS
    partial.write_bytes(kept)
    asked.clear()
    assert generate(*options, "--force")[2] == whole
    assert asked == PROMPTS[2:]
    assert not partial.exists()


def test_the_command_is_there_in_a_real_process():
    command = [sys.executable, "-m", "nashpref.cli", "generate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for method in generate_command.NEEDS:
        assert method in done.stdout
