"""Answers that can be checked: what is right, what has the form, what is said of mistakes, and runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nashpref.cli import main
from nashpref.llm import verifiable
from nashpref.llm.algorithms import DrGRPO, ReMax
from nashpref.llm.command import read_method, train
from nashpref.llm.data import Demonstration, Prompt
from nashpref.llm.encoding import Encoder
from nashpref.llm.playground import tiny_causal_lm
from nashpref.llm.rlhf import RLHFConfig, RLHFTrainer
from nashpref.llm.verifiable import (
    ThinkAnswer,
    VerifiableTask,
    final_answer,
    greedy_metrics,
    reversal,
    same_number,
    same_text,
    sums,
)

NAMES, SUMS = reversal(200, 50), sums(12, 40)
TASKS = [NAMES, SUMS]


def record_of(task):
    return st.sampled_from([*task.train, *task.held_out])


# --- what is right ---


@given(st.text(), st.text(alphabet=" \t\n"), st.text(alphabet=" \n"))
def test_white_space_at_the_ends_is_no_mistake(text, before, after):
    assert same_text(before + text + after, text)
    assert not same_text(text + "x", text)


@given(st.integers(), st.integers(1, 5))
def test_a_number_is_the_same_however_it_is_written(number, zeros):
    for written in (f"{number}", f" {number:,}\n", f"{number}.{'0' * zeros}", f"{number:+}"):
        assert same_number(written, str(number))
    assert not same_number(str(number + 1), str(number))
    assert not same_number(f"{number}.5", str(number))


@pytest.mark.parametrize("text", ["", "one", "1 2", "1+1", "nan", "inf", "--1", "1,0", "10,00", "1,0000"])
def test_what_is_no_number_is_wrong(text):
    assert not same_number(text, "10")
    assert not same_number(text, text)  # not even where the answer is as bad


@given(record_of(NAMES))
def test_names_are_answered_backwards(record):
    name = record.prompt.removesuffix(">")
    assert record.completion == name[::-1]
    assert record.completion[::-1] == name
    assert name.isalpha()
    assert 6 <= len(name) <= 9


@given(record_of(SUMS))
def test_sums_are_right(record):
    a, b = record.prompt.removesuffix("=").split("+")
    assert int(record.completion) == int(a) + int(b)


@given(record_of(NAMES), st.text(alphabet="abdefgijklmnoprstuvz", max_size=10))
def test_one_for_the_right_answer_alone(record, other):
    assert NAMES([record.prompt] * 2, [record.completion, other]) == [1.0, float(other == record.completion)]


@given(record_of(SUMS), st.integers(-5, 30))
def test_sums_are_checked_as_numbers(record, other):
    rewards = SUMS([record.prompt] * 2, [f"0{record.completion}.0", str(other)])
    assert rewards == [1.0, float(other == int(record.completion))]


@pytest.mark.parametrize("task", TASKS, ids=["reversal", "sums"])
def test_nothing_held_out_is_trained_on(task):
    everything = [*task.train, *task.held_out]
    assert len({record.prompt for record in everything}) == len(everything)
    assert (len(task.prompts), len(task.held_out_prompts)) == (len(task.train), len(task.held_out))


def test_no_name_is_asked_whose_answer_is_held_out(monkeypatch):
    """Of the eight names of these letters two are each other's answers."""
    for name, letters in (("ONSETS", "n"), ("VOWELS", "a"), ("CODAS", "n")):
        monkeypatch.setattr(verifiable, name, letters)
    task = reversal(6, 1)
    names = {prompt.removesuffix(">") for prompt in task.prompts + task.held_out_prompts}
    assert len(names) == 7
    assert len(names & {"nannanan", "nanannan"}) == 1


def test_sizes_and_seeds():
    assert (len(NAMES.train), len(NAMES.held_out)) == (200, 50)
    assert (len(SUMS.train), len(SUMS.held_out)) == (13**2 - 40, 40)
    assert len(reversal().held_out) == 500
    assert reversal(200, 50).train == NAMES.train
    assert reversal(200, 50, seed=1).train != NAMES.train
    assert sums(12, 40).held_out == SUMS.held_out != sums(12, 40, seed=1).held_out


@given(st.sampled_from(TASKS).flatmap(lambda task: st.tuples(st.just(task), record_of(task))))
def test_a_token_is_a_character_and_nothing_is_lost(drawn):
    task, record = drawn
    tokenizer = task.tokenizer()
    encoded = Encoder(tokenizer).encode(record.prompt, record.completion)
    prompt, completion = encoded.ids[: encoded.start], encoded.ids[encoded.start :]
    assert len(prompt) == len(record.prompt)
    assert tokenizer.decode(prompt) == record.prompt
    assert tokenizer.decode(completion[:-1]) == record.completion
    assert completion[-1] == tokenizer.eos_token_id
    assert len(completion) <= task.max_new_tokens


def test_chats_are_asked_and_answered():
    chat = [{"role": "user", "content": "2+2?"}]
    task = VerifiableTask([Demonstration(chat, [{"role": "assistant", "content": "4"}])], check=same_number)
    assert task([chat, [dict(chat[0])]], ["4.0", [{"role": "assistant", "content": "5"}]]) == [1.0, 0.0]
    assert task.tokenizer().tokenize("2+2?4") == list("2+2?4")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VerifiableTask([]), "train: there are no answers"),
        (lambda: VerifiableTask([Prompt("a")]), "train[0] is a Prompt: a Demonstration is needed"),
        (lambda: VerifiableTask(NAMES.train, [Prompt("a")]), "held_out[0] is a Prompt"),
        (lambda: VerifiableTask(NAMES.train, NAMES.train[3:4]), 'held_out[0]: "' + NAMES.prompts[3]),
        (
            lambda: VerifiableTask([Demonstration("a", "b"), Demonstration("a", "c")]),
            "train[1]: \"a\" is answered 'b' before and 'c' here",
        ),
        (lambda: NAMES([NAMES.prompts[0], "zzz>"], ["", ""]), 'sample 1 ("zzz>"): is none of the task'),
        (lambda: reversal(0), "names = 0"),
        (lambda: reversal(10**6), "names = 1000000, held_out = 500: from 1 name"),
        (lambda: sums(2, 9), "largest = 2, held_out = 9: there are 9 sums"),
        (lambda: sums(-1), "largest = -1"),
        (lambda: ThinkAnswer(NAMES, weight=1.5), "weight = 1.5"),
        (lambda: greedy_metrics({}, ["a"], NAMES.tokenizer(), max_new_tokens=3), "1 prompts, 0 rewards"),
        (lambda: greedy_metrics({"r": NAMES}, [], NAMES.tokenizer(), max_new_tokens=3), "0 prompts, 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# --- the form ---

PLAIN = st.text().filter(lambda text: not re.search(r"</?(think|answer)>", text))
GAP = st.text(alphabet=" \n\t", max_size=3)


@given(PLAIN, PLAIN, GAP, GAP, GAP)
def test_the_form_is_accepted_whatever_is_between_the_tags(thought, answer, a, b, c):
    response = f"{a}<think>{thought}</think>{b}<answer>{answer}</answer>{c}"
    assert final_answer(response) == answer.strip()


@pytest.mark.parametrize(
    "response",
    [
        "",
        "4",
        "<answer>4</answer>",
        "<think>2+2</think>",
        "<think>2+2</think>4",
        "<think>2+2</think><answer>4",
        "<think>2+2<answer>4</answer>",
        "<answer>4</answer><think>2+2</think>",
        "<think>2+2</think><answer>4</answer> I am sure",
        "So <think>2+2</think><answer>4</answer>",
        "<think>2+2</think>so<answer>4</answer>",
        "<think>2+2</think><answer>5</answer><answer>4</answer>",
        "<think>a</think><think>b</think><answer>4</answer>",
        "<think><think>a</think></think><answer>4</answer>",
        "<think><answer>5</answer></think><answer>4</answer>",
        "<think>a</think><answer><answer>4</answer></answer>",
        "<THINK>a</THINK><answer>4</answer>",
        "<think>a</think><answer>4</answer" + ">" * 2,
        "<think>" * 20_000,
        "<think></think>" + " " * 20_000,
    ],
)
def test_another_form_is_worth_nothing(response):
    assert final_answer(response) is None
    reward = ThinkAnswer(VerifiableTask([Demonstration("2+2=", "4")]), weight=0.25)
    assert reward(["2+2="], [response]) == [0.0]


@given(st.floats(0.0, 1.0), record_of(SUMS), st.integers(0, 30))
def test_the_two_parts(weight, record, other):
    reward, right = ThinkAnswer(SUMS, weight=weight), record.completion
    answers = [right, str(other), right]
    responses = [f"<think>hm</think>\n<answer> {answer} </answer>" for answer in answers]
    responses[2] = answers[2]  # right, in no form
    prompts = [record.prompt] * 3
    correct = [1.0, float(other == int(right)), 0.0]
    assert reward.form(prompts, responses) == [1.0, 1.0, 0.0]
    assert reward.correct(prompts, responses) == correct
    expected = [weight + (1.0 - weight) * each for each in correct[:2]]
    assert reward(prompts, responses) == pytest.approx([*expected, 0.0])


def test_the_form_takes_any_reward_and_shows_it_answers_alone():
    seen = []

    def lengths(prompts, responses):
        seen.append((list(prompts), list(responses)))
        return torch.tensor([float(len(response)) for response in responses])

    reward = ThinkAnswer(lengths, weight=0.5)
    asked = ["a", "b", "c"]
    assert reward(asked, ["<think></think><answer>xyz</answer>", "xyz", "<think>\n</think><answer/>"]) == [
        0.5 + 0.5 * 3.0,
        0.0,
        0.0,
    ]
    assert seen == [(["a"], ["xyz"])]
    assert reward(asked, [""] * 3) == [0.0] * 3
    assert len(seen) == 1  # there was nothing to ask
    with pytest.raises(ValueError, match=r"correct gave nan for sample 0 \(\"b\"\)"):
        ThinkAnswer(lambda x, y: [float("nan")])(["a", "b"], ["", "<think>.</think><answer>1</answer>"])


# --- measured greedily ---


def lm(task, seed=0):
    return tiny_causal_lm(task.tokenizer(), layers=1, width=16, context=32, seed=seed)


def test_greedy_metrics_are_of_the_likeliest_tokens():
    """Against a loop without cache or padding, in batches of any size."""
    model, tokenizer, prompts = lm(SUMS), SUMS.tokenizer(), SUMS.held_out_prompts
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        start = ids.shape[1]
        while ids.shape[1] < start + 3 and ids[0, -1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        said = ids[0, start:].tolist()
        texts.append(tokenizer.decode(said[: said.index(tokenizer.eos_token_id)] if 2 in said else said))
    asked = []

    def spelling(prompts, responses):
        asked.append(list(responses))
        return [float(len(response)) for response in responses]

    for size in (7, 256):
        rewards = {"characters": spelling, "right": SUMS}
        found = greedy_metrics(rewards, prompts, tokenizer, max_new_tokens=3, batch_size=size)(model)
        assert asked[-1] == texts
        assert found == {
            "characters": pytest.approx(sum(map(len, texts)) / len(texts)),
            "right": sum(SUMS(prompts, texts)) / len(texts),
        }
    with pytest.raises(ValueError, match="right gave 1 values for 40 samples"):
        greedy_metrics({"right": lambda x, y: [1.0]}, prompts, tokenizer, max_new_tokens=3)(model)


# --- a run ---


def trainer(folder, reward, *, rounds=3, algorithm=None, model=None, **options):
    tokenizer = SUMS.tokenizer()
    metrics = greedy_metrics({"exact_match": SUMS}, SUMS.held_out_prompts, tokenizer, max_new_tokens=3)
    config = RLHFConfig(
        output=str(folder), rounds=rounds, samples=4, batch_size=4, max_new_tokens=3, learning_rate=1e-2,
        log_every=1, save_every=1, **options,
    )  # fmt: skip
    algorithm = algorithm or DrGRPO(beta=0.0, clip=(0.2, 1.0))
    return RLHFTrainer(
        model or lm(SUMS), algorithm, reward, config, SUMS.prompts, tokenizer, compute_metrics=metrics
    )


def digits(prompts, responses):
    """Something that a model at random can learn to say."""
    return [float(sum(each.isdigit() for each in response)) for response in responses]


def test_a_reward_is_maximised_and_measured(tmp_path):
    log = trainer(tmp_path, digits, rounds=12, eval_every=6).train(progress=False)
    assert [record["step"] for record in log if "eval/exact_match" in record] == [6, 12]
    rewards = [record["reward"] for record in log if "reward" in record]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 1.0
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["algorithm"]["clip"] == [0.2, 1.0]


def broken_at(call, how, which=5):
    """`digits` until that call; then one of its samples goes wrong, asked alone too."""
    calls, bad = [], []

    def reward(prompts, responses):
        calls.append(1)
        if len(calls) == call:
            bad.append((prompts[which], responses[which]))
        found = digits(prompts, responses)
        if how == "count":
            return found[1:] if len(calls) >= call else found
        for i, pair in enumerate(zip(prompts, responses, strict=True)):
            if pair in bad:
                if how == "raises":
                    raise ZeroDivisionError("no such thing")
                found[i] = float("nan")
        return found

    reward.bad = bad
    return reward


@pytest.mark.parametrize("how", ["raises", "nan", "count"])
def test_a_reward_that_fails_names_the_sample_and_when_mended_the_run_goes_on(how, tmp_path):
    whole = trainer(tmp_path / "whole", digits, rounds=5)
    expected = whole.train(progress=False)
    reward = broken_at(4, how)
    with pytest.raises(ValueError, match=r"^step 4: the reward ") as error:
        trainer(tmp_path / "broken", reward, rounds=5).train(progress=False)
    if how == "count":
        assert str(error.value) == "step 4: the reward gave 15 values for 16 samples: one for each is needed"
    else:
        ((prompt, response),) = reward.bad
        found = re.fullmatch(r"step 4: the reward .* sample (\d+) \(\"(.*)\"\).*", str(error.value))
        assert found
        assert found[2] == prompt
        assert int(found[1]) // 4 == 5 // 4  # the first of that prompt's equal responses
    if how == "raises":
        assert "raised ZeroDivisionError: no such thing; for sample" in str(error.value)
        assert f"answered {response!r}" in str(error.value)
        assert isinstance(error.value.__cause__.__cause__, ZeroDivisionError)
    again = trainer(tmp_path / "broken", digits, rounds=5)
    found = again.train(progress=False)
    assert again.objective.taken == 5
    for log in (expected, found):
        for record in log:
            record.pop("seconds", None)
    assert found == expected
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_reward_that_fails_only_on_many_at_once_says_so(tmp_path):
    def crowded(prompts, responses):
        if len(prompts) > 1:
            raise RuntimeError("one at a time")
        return [0.0]

    with pytest.raises(ValueError, match=r"step 1: .*RuntimeError: one at a time; for all samples together"):
        trainer(tmp_path, crowded).train(progress=False)


def test_the_greedy_response_is_judged_with_the_same_care(tmp_path):
    reward = broken_at(2, "raises", which=0)  # ReMax asks about it second
    with pytest.raises(ValueError, match=r"step 1: the reward raised ZeroDivisionError.* sample 0 "):
        trainer(tmp_path, reward, algorithm=ReMax(beta=0.0)).train(progress=False)


# --- by name ---

CONFIG = """
method: rlhf
algorithm: {name: dr-grpo, beta: 0.0, clip: [0.2, 1]}
reward: {check: number}
model: {name: policy}
data: {train: train.jsonl, evaluate: held_out.jsonl}
train:
  {output: out, rounds: 2, samples: 2, max_new_tokens: 3, batch_size: 4, learning_rate: 1e-3, log_every: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = lm(SUMS)
    model.save_pretrained("policy")
    SUMS.tokenizer().save_pretrained("policy")
    for name, records in (("train", SUMS.train[:8]), ("held_out", SUMS.held_out[:4])):
        rows = [json.dumps({"prompt": r.prompt, "completion": r.completion}) + "\n" for r in records]
        Path(f"{name}.jsonl").write_text("".join(rows))
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def test_the_command_checks_the_answers_of_its_records(folder):
    assert main(["train", "c.yaml"]) == 0
    records = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [record["eval/greedy_reward"] for record in records if "eval/greedy_reward" in record]
    assert read_method("c.yaml").gradient().clip == (0.2, 1.0)
    reward = read_method("c.yaml").reward.reward(SUMS.train, SUMS.held_out)
    assert isinstance(reward, VerifiableTask)
    a, b = SUMS.train[0], SUMS.held_out[0]
    asked = [a.prompt, a.prompt, b.prompt]
    assert reward(asked, [f"{a.completion}.0", "-1", b.completion]) == [1.0, 0.0, 1.0]
    exact = read_method("c.yaml", ["reward.check=text"]).reward.reward(SUMS.train, ())
    assert exact(asked[:2], [f"{a.completion}.0", a.completion]) == [0.0, 1.0]
    thinking = read_method("c.yaml", ["reward.think_answer=0.2"]).reward.reward(SUMS.train, ())
    form = "<think></think><answer>{}</answer>"
    assert thinking(asked[:2], [form.format(a.completion), form.format("-1")]) == pytest.approx([1.0, 0.2])


def test_the_configurations_of_the_reversal_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])  # from where they name their files
    first, then = (f"experiments/configs/reversal_{name}.yaml" for name in ("sft", "rlhf"))
    policy = train(read_method(first, [f"train.output={tmp_path / 'sft'}", "train.max_steps=2"]))
    settings = [f"model.name={policy}", f"train.output={tmp_path / 'rlhf'}", "train.rounds=1"]
    method = read_method(then, settings)
    assert method.model.name == str(policy)
    assert read_method(then).model.name == read_method(first).train.output + "/model"
    assert (train(method) / "model.safetensors").exists()
    assert "eval/greedy_reward" in (tmp_path / "rlhf" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reward.check=words"], "c.yaml: reward: check = 'words': one of 'text', 'number' is expected"),
        (["reward={chekc: text}"], "c.yaml: reward: no option 'chekc' (did you mean 'check'?)"),
        (["reward.think_answer=2"], "c.yaml: reward: think_answer = 2.0: a weight in [0, 1]"),
        (["reward=3"], "c.yaml: reward: a mapping of options is expected, not 3"),
        (["algorithm.clip=[0.2, 0.3, 0.4]"], "clip = (0.2, 0.3, 0.4): one number is needed, or two"),
        (["algorithm.clip=[0.2, -1]"], "clip_high = -1.0: it must be finite and positive"),
        (["data.evaluate=train.jsonl"], "held_out[0]: "),
        (["data.train=prompts.jsonl"], "train[0] is a Prompt: a Demonstration is needed"),
    ],
)
def test_mistakes_in_a_configuration(folder, capsys, settings, message):
    Path("prompts.jsonl").write_text('{"prompt": "1+1="}\n')
    before = sorted(folder.rglob("*"))
    assert main(["train", "c.yaml", *(word for each in settings for word in ("--set", each))]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert sorted(folder.rglob("*")) == before
