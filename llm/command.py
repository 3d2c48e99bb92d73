"""The body of `nashpref train CONFIG.yaml`: from a configuration to a saved model."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate.utils import set_seed

from nashpref.llm.checkpoints import write_folder
from nashpref.llm.config import from_mapping, read_yaml
from nashpref.llm.methods import METHODS, Method
from nashpref.llm.runs import NonFiniteLoss, check_output
from nashpref.llm.training import Interrupted, make_accelerator

MODEL = "model"  # where in the output folder the trained model is


def main(path: str, settings: Sequence[str] = ()) -> int:
    """Train as the YAML file says, `settings` (`train.seed=1`) having the last word; the exit status.

    0: trained and saved; 1: the loss is no longer finite; 130: interrupted, state saved.

    Raises:
        ValueError: a mistake in the configuration or the data; nothing has been written.
        OSError: a file cannot be read or written.
    """
    from transformers.utils import logging

    method = read_method(path, settings)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ours is the one
    try:
        model = train(method, progress=True)
    except Interrupted as interrupt:
        print(f"nashpref: {interrupt}", file=sys.stderr)
        return 130
    except NonFiniteLoss as error:
        print(f"nashpref: {error}", file=sys.stderr)
        return 1
    if model is not None:
        print(f"wrote {model}")
    return 0


def read_method(path: str | Path, settings: Iterable[str] = ()) -> Method:
    """The method that a YAML file configures; `settings` are options in the form `train.seed=1`.

    Raises:
        ValueError: naming the file, the option and the nearest one that exists.
    """
    content = read_yaml(path)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: write it as NAME=VALUE, such as train.seed=1")
        _set(content, key, yaml.safe_load(text))
    name = str(content.get("method"))
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(METHODS)}"
        raise ValueError(f"{path}: method = {name!r}: no such method ({hint})")
    return from_mapping(content, METHODS[name], str(path))


def train(method: Method, *, progress: bool = False) -> Path | None:
    """Train, and save the model with its tokenizer; returns its folder, None beside the main process.

    An output folder with checkpoints of the same configuration is gone on with.

    Raises:
        ValueError: a mistake in the configuration or the data; nothing has been written.
        NonFiniteLoss, Interrupted, OSError: see `fit`.
    """
    config, data = method.train, method.data
    options = {k: v for k, v in dataclasses.asdict(method).items() if k != "train"}
    check_output(config, options)
    accelerator = make_accelerator(config)
    set_seed(config.seed)  # new heads and adapters

    def say(message: str) -> None:
        if accelerator.is_main_process:
            print(f"nashpref: {message}", file=sys.stderr)

    records = data.read(data.train, say)
    held_out = data.read(data.evaluate, say) if data.evaluate is not None else ()
    save = method.run(records, held_out, accelerator, options=options, progress=progress)
    folder = Path(config.output) / MODEL
    if accelerator.is_main_process:
        write_folder(folder, save)
    accelerator.wait_for_everyone()
    return folder if accelerator.is_main_process else None


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """`content[a][b] = value` for the key `a.b`."""
    *outer, last = key.split(".")
    for name in outer:
        inner = content.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {key}: {name} is no group of options")
        content = inner
    content[last] = value
