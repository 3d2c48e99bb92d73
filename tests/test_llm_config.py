"""YAML is a dataclass: what is not an option, or not of its type, is named with its place."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from nashpref.llm.config import from_mapping, read_yaml
from nashpref.llm.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 4
    names: tuple[str, ...] = ()

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width = {self.width}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    beta: float
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    maybe: Inner | None = None
    limit: int | None = None
    quick: bool = False
    columns: dict[str, str] | None = None
    anything: Any = None


def read(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return from_mapping(read_yaml(path), Outer, "c.yaml")


def test_values_and_defaults(tmp_path):
    text = "beta: 1e-3\nkind: b\ninner: {width: 8, names: x}\nmaybe: {names: [y, z]}\nlimit: 3\nquick: true\n"
    assert read(tmp_path, text) == Outer(
        beta=1e-3,  # which YAML takes for text
        kind="b",
        inner=Inner(width=8, names=("x",)),
        maybe=Inner(names=("y", "z")),
        limit=3,
        quick=True,
    )
    assert read(tmp_path, "beta: 2\nlimit: null\n") == Outer(beta=2.0)
    assert isinstance(read(tmp_path, "beta: 2\n").beta, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta: 1\nknd: a\n", r"c.yaml: no option 'knd' \(did you mean 'kind'\?\)"),
        ("beta: 1\nzzzzz: a\n", "c.yaml: no option 'zzzzz' .there are beta, kind"),
        ("beta: 1\ninner: {widht: 3}\n", r"c.yaml: inner: no option 'widht' \(did you mean 'width'\?\)"),
        ("kind: a\n", "c.yaml: option 'beta' is missing"),
        ("", "c.yaml: option 'beta' is missing"),
        ("beta: high\n", "c.yaml: beta = 'high': a number is expected"),
        ("beta: true\n", "c.yaml: beta = True: a number is expected"),
        ("beta: 1\nkind: c\n", "c.yaml: kind = 'c': one of 'a', 'b' is expected"),
        ("beta: 1\nlimit: 2.5\n", "c.yaml: limit = 2.5: an integer is expected"),
        ("beta: 1\nlimit: true\n", "c.yaml: limit = True: an integer is expected"),
        ("beta: 1\nquick: 1\n", "c.yaml: quick = 1: true or false is expected"),
        ("beta: 1\ninner: 3\n", "c.yaml: inner: a mapping of options is expected, not 3"),
        ("beta: 1\ninner: {width: 0}\n", "c.yaml: inner: width = 0: it must be at least 1"),
        ("beta: 1\ninner: {names: [1]}\n", r"c.yaml: inner: names\[0\] = 1: text is expected"),
        ("beta: 1\ncolumns: 3\n", "c.yaml: columns = 3: a mapping is expected"),
        ("beta: 1\nbeta: 2\n", "c.yaml: not YAML .'beta' is there twice in the mapping at line 1"),
        ("beta: [\n", "c.yaml: not YAML"),
        ("- 1\n", "c.yaml: a mapping of options is expected"),
        ("beta: !!python/object/apply:os.getcwd []\n", "c.yaml: not YAML"),
    ],
)
def test_mistakes_are_named_with_their_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.yaml: No such file"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "option",
    [{"epochs": 0}, {"batch_size": 0}, {"micro_batch_size": 0}, {"max_steps": 0}, {"log_every": 0},
     {"keep_checkpoints": 0}, {"warmup_steps": -1}, {"save_every": -1}, {"learning_rate": 0.0},
     {"learning_rate": float("nan")}, {"weight_decay": float("nan")}, {"max_grad_norm": -1.0}],
)  # fmt: skip
def test_options_of_training_out_of_range(option):
    (name,) = option
    with pytest.raises(ValueError, match=name):
        TrainConfig(output="x", **option)
