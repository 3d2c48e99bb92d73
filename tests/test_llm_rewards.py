"""Reward models of outcomes and steps: what they learn and read, and that what is saved is loaded."""

import itertools

import pytest
import torch

from nashpref.llm.data import Outcome, Steps, read
from nashpref.llm.methods.preferences import _check_labels
from nashpref.llm.objectives import LabelledSteps, Outcomes
from nashpref.llm.playground import tiny_causal_lm, tiny_tokenizer
from nashpref.llm.preferences import OutcomeRewardModel, ProcessRewardModel, from_reward

TOKENIZER = tiny_tokenizer(["abcd?\n"], level="character")
STRINGS = ["".join(letters) for n in (1, 2, 3, 4) for letters in itertools.product("ab", repeat=n)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def reward_model(kind, width=32, **options):
    return kind.from_backbone(
        tiny_causal_lm(TOKENIZER, layers=2, width=width, context=64), TOKENIZER, **options
    )


def even(text):
    return text.count("a") % 2 == 0


def learn(objective, batch, steps, lr=3e-3):
    optimizer = torch.optim.AdamW(objective.parameters(), lr)
    for _ in range(steps):
        loss = objective(batch)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return objective(batch)


def test_an_outcome_model_learns_whether_the_number_of_as_is_even():
    model = reward_model(OutcomeRewardModel)
    batch = model.collate([model.encode(Outcome("?", text, float(even(text)))) for text in STRINGS])
    values = learn(Outcomes(model), batch, 250)
    right = torch.tensor([even(text) for text in STRINGS])
    assert values["accuracy"].mean() == 1.0
    rewards = model(["?"] * len(STRINGS), STRINGS)
    assert rewards.shape == right.shape
    assert ((rewards > 0.5) == right).all()
    P = from_reward(model, scale=10.0).matrix("?", ["aa", "a"])
    assert P[0, 1] > 0.9


STEPS = [
    Steps("?", steps, tuple(1 if even(step) else -1 for step in steps))
    for steps in itertools.product(["aa", "ab", "ba", "bb"], repeat=2)
]


@pytest.mark.parametrize("aggregate", ["product", "minimum"])
def test_a_process_model_learns_which_steps_are_right(aggregate):
    model = reward_model(ProcessRewardModel, aggregate=aggregate)
    values = learn(LabelledSteps(model), model.collate([model.encode(record) for record in STEPS]), 150)
    assert values["accuracy"].mean() == 1.0
    rewards = model(["?"] * len(STEPS), ["\n".join(record.steps) for record in STEPS])
    assert ((rewards > 0.5) == torch.tensor([min(record.labels) == 1 for record in STEPS])).all()


def test_the_reward_of_steps_is_their_product_or_minimum_and_neutral_is_not_wrong():
    model = reward_model(ProcessRewardModel)
    with torch.no_grad():
        model.head.weight.mul_(60.0)
    example = model.example("?", "ab\n\naa\nb")
    assert len(example.ends) == 3  # the blank one is left out
    batch = model.collate([example])
    p = torch.softmax(model.token_outputs(batch.tokens), dim=-1)[0, list(example.ends)]
    not_wrong = 1.0 - p[:, 0]
    assert not_wrong.max() - not_wrong.min() > 0.05
    assert model(["?"], ["ab\n\naa\nb"]).item() == pytest.approx(not_wrong.prod().item(), rel=1e-5)
    model.config.aggregate = "minimum"
    assert model(["?"], ["ab\n\naa\nb"]).item() == pytest.approx(not_wrong.min().item(), rel=1e-5)


def test_a_response_is_read_as_it_was_trained_on():
    model = reward_model(ProcessRewardModel)
    trained, asked = model.encode(Steps("?", ("ab", "ba\n"), (1, 1))), model.example("?", "ab\nba")
    assert (list(trained.response.ids), trained.ends) == (list(asked.response.ids), asked.ends)
    tokens = TOKENIZER.convert_ids_to_tokens(trained.response.ids)
    assert tokens == ["?", "a", "b", "\n", "b", "a", "<eos>"]
    assert list(trained.ends) == [3, 6]


@pytest.mark.parametrize("kind", [OutcomeRewardModel, ProcessRewardModel])
def test_neither_other_rows_nor_padding_change_a_loss(kind):
    """Nor does what a position that does not count holds, such as a prompt's."""
    model = reward_model(kind)
    if kind is OutcomeRewardModel:
        objective, records = Outcomes(model), [Outcome("?ab", "ab", 1.0), Outcome("?", "abababab", 0.0)]
        read_outputs = "token_logits"
    else:
        objective = LabelledSteps(model)
        records = [Steps("?ab", ("a", "b"), (1, -1)), Steps("?", ("aaaa", "bbbb", "a"), (0, 1, 1))]
        read_outputs = "token_outputs"
    examples = [model.encode(record) for record in records]
    together = objective(model.collate(examples))["loss"]
    alone = torch.cat([objective(model.collate([example]))["loss"] for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)

    batch = model.collate(examples)
    outputs = getattr(model, read_outputs)(batch.tokens).detach()
    counted = batch.tokens.completion_mask if kind is OutcomeRewardModel else batch.labels != -100
    noise = torch.randn_like(outputs)
    for where, same in ((~counted, True), (counted, False)):
        setattr(
            model,
            read_outputs,
            lambda _, w=where: outputs + noise * w.view(*w.shape, *[1] * (outputs.ndim - 2)),
        )
        assert torch.equal(objective(batch)["loss"], together) is same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [OutcomeRewardModel, ProcessRewardModel])
def test_saved_is_loaded_bit_for_bit(kind, dtype, tmp_path):
    options = {"separator": "d", "aggregate": "minimum"} if kind is ProcessRewardModel else {}
    model = torch.nn.Module.to(reward_model(kind, max_length=32, **options), dtype)
    prompts, responses = ["?"] * 3, ["ab", "adb", "bbda"]
    expected = model(prompts, responses)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(again(prompts, responses), expected)
    for option in ("separator", "aggregate"):
        assert getattr(again.config, option) == getattr(model.config, option)
    assert again.config.max_tokens == 32
    assert again.dtype == dtype


def test_long_responses_lose_their_end_and_the_labels_with_it():
    model = reward_model(ProcessRewardModel, max_length=6)
    cut = model.encode(Steps("???", ("ab", "ba", "ab"), (1, -1, 1)))
    assert len(cut) == 6
    assert (cut.labels, cut.response.dropped, cut.response.cut) == ((1,), 2, 4)
    with pytest.raises(ValueError, match="max_tokens = 6: the first of the response's steps alone is longer"):
        model.encode(Steps("?", ("abababab", "b"), (1, 1)))


def test_records_by_their_columns():
    rows = [
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "completion": "c", "correct": 0.25, "source": "s"},
        {"prompt": "p", "completion": "c", "label": "False"},
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
        {"prompt": "p", "completions": ["a", "b", "c"], "labels": [1, 0, -1]},
        {"prompt": "p", "completions": '["a"]', "labels": "[false]"},
    ]
    assert list(read(rows)) == [
        Outcome("p", "c", 1.0),
        Outcome("p", "c", 0.25, "s"),
        Outcome("p", "c", 0.0),
        Steps("p", ("a", "b"), (1, -1)),
        Steps("p", ("a", "b", "c"), (1, 0, -1)),
        Steps("p", ("a",), (-1,)),
    ]


def test_columns_of_these_names_mean_nothing_elsewhere():
    for row in (
        {"prompt": "p", "chosen": "a", "rejected": "b", "label": 1, "labels": [1], "correct": 2},
        {"prompt": "p", "completion": "a", "labels": 3},
    ):
        assert not isinstance(read([row])[0], Outcome | Steps)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "c", "label": None}, r"correct \(column label\) = None: a number is expected"),
        ({"completion": "c", "correct": 2}, "correct = 2.0: a probability"),
        ({"completion": "c", "correct": 1, "label": 1}, "label and correct: which of them says it"),
        ({"completion": "c", "corect": 1}, "corect: if it is 'correct'"),
        ({"completions": ["a", "b"], "labels": [True]}, "labels has 1 entries for 2 steps"),
        ({"completions": [], "labels": []}, "at least one step is needed"),
        ({"completions": ["a"], "labels": [2]}, "labels hold 2: a step is wrong"),
        ({"completions": ["a"], "labels": ["yes"]}, r"labels\[0\] = 'yes': a number"),
        ({"completions": ["a", " "], "labels": [1, 1]}, r"completions\[1\] = ' ': a step is text, and not"),
        ({"completions": ["a"], "labels": [1], "ranking": [0]}, "belong to different kinds"),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(ValueError, match=message):
        read([{"prompt": "p", **row}])


def test_labels_by_columns_need_steps():
    with pytest.raises(ValueError, match="completions: is missing: labels judge them"):
        read([{"prompt": "p", "labels": [1]}], columns={"prompt": "prompt", "labels": "labels"})


def test_mistakes():
    model = reward_model(ProcessRewardModel)
    with pytest.raises(ValueError, match=r"steps\[0\] holds '\\n', at which responses are split"):
        model.encode(Steps("?", ("a\nb",), (1,)))
    with pytest.raises(ValueError, match="the response is messages"):
        model(["?"], [[{"role": "assistant", "content": "a"}]])
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        model(["?"], ["a", "b"])
    with pytest.raises(ValueError, match="separator is empty"):
        reward_model(ProcessRewardModel, separator="")
    with pytest.raises(ValueError, match="aggregate = 'mean': choose 'product' or 'minimum'"):
        reward_model(ProcessRewardModel, aggregate="mean")
    with pytest.raises(ValueError, match="labels are 0 and 1, and never −1"):
        _check_labels([Steps("?", ("a", "b"), (0, 1))])
    assert reward_model(OutcomeRewardModel)([], []).shape == (0,)
    assert model(["?"], [""]).shape == (1,)
