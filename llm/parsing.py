"""The values of one row into a record; each fault is named by its field, with what to do about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from nashpref.llm.records import Demonstration, Outcome, Pair, Prompt, Ranking, Record, Steps, Table, Text

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # the turns of a dialogue written as text (HH-RLHF)


def record(fields: Mapping[str, Any], allow_empty: bool) -> Record:
    """The record that these fields make up, by their names.

    Raises:
        ValueError: what is wrong with which field, and what to do about it.
    """
    source = str(fields.get("source", ""))
    kinds = ("chosen", "rejected", "completion", "ranking", "preferences", "labels")
    marks = [name for name in kinds if name in fields]
    if marks and {"chosen", "rejected"}.issuperset(marks):
        return _pair(fields, allow_empty, source)
    if len(marks) > 1:
        what = " and ".join(marks)
        raise ValueError(f"{what} belong to different kinds of record: choose one of them with columns=")
    if not marks and "completions" in fields:
        raise ValueError("completions: there is neither a ranking nor preferences nor labels of them")
    if not marks and "messages" in fields:
        return _chat(fields["messages"], allow_empty, source)
    if not marks and "text" in fields and "prompt" not in fields:
        return Demonstration("", _completion(fields["text"], "text", "", allow_empty), source)
    if "prompt" not in fields:
        what = f"what {marks[0]} is about" if marks else "and so is every other field that `read` knows"
        raise ValueError(f"prompt: is missing, {what}: each row needs one")
    prompt = _prompt(fields["prompt"], "prompt")
    if not marks:
        return Prompt(prompt, source)
    if marks == ["completion"]:
        completion = _completion(fields["completion"], "completion", prompt, allow_empty)
        if "correct" in fields:
            return Outcome(prompt, completion, _correct(fields["correct"]), source)
        return Demonstration(prompt, completion, source)
    if "completions" not in fields:
        does = "judge" if marks == ["labels"] else "compares"
        raise ValueError(f"completions: is missing: {marks[0]} {does} them")
    if marks == ["labels"]:
        return _steps(fields, prompt, source)
    completions = tuple(
        _completion(completion, f"completions[{i}]", prompt, allow_empty)
        for i, completion in enumerate(_list(fields["completions"], "completions"))
    )
    values = _list(fields[marks[0]], marks[0])
    if marks == ["ranking"]:
        places = tuple(_whole(place, f"ranking[{i}]") for i, place in enumerate(values))
        return Ranking(prompt, completions, places, source)
    try:
        preferences = np.array(values, dtype=np.float64)
    except (ValueError, TypeError):
        raise ValueError("preferences: equally long rows of numbers are needed") from None
    return Table(prompt, completions, preferences, source)


def _chat(value: Any, allow_empty: bool, source: str) -> Demonstration:
    """A whole chat: the prompt is what comes before the assistant first speaks."""
    messages = _text(value, "messages")
    if isinstance(messages, str):
        raise ValueError("messages: is text: a list of messages is needed, or name the column text")
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    prompt = _prompt(messages[:first], "messages")
    return Demonstration(
        prompt, _completion(messages[first:], f"messages[{first}:]", prompt, allow_empty), source
    )


def _pair(fields: Mapping[str, Any], allow_empty: bool, source: str) -> Pair:
    for name in ("chosen", "rejected"):
        if name not in fields:
            raise ValueError(f"{name}: is missing: a pair has chosen and rejected")
    chosen, rejected = (_text(fields[name], name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError("chosen == rejected: there is nothing to prefer; leave the row out")
    if "prompt" in fields:
        prompt = _prompt(fields["prompt"], "prompt")
    else:
        prompt, chosen, rejected = _split(chosen, rejected)
        prompt = _prompt(prompt, "the common beginning of chosen and rejected")
    return Pair(
        prompt,
        _completion(chosen, "chosen", prompt, allow_empty),
        _completion(rejected, "rejected", prompt, allow_empty),
        _number(fields.get("p_chosen", 1.0), "p_chosen"),
        _number(fields.get("margin", 0.0), "margin"),
        source,
    )


def _steps(fields: Mapping[str, Any], prompt: Text, source: str) -> Steps:
    steps = _list(fields["completions"], "completions")
    for i, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            raise ValueError(f"completions[{i}] = {str(step)[:40]!r}: a step is text, and not empty")
        _clean(step, f"completions[{i}]")
    labels = _list(fields["labels"], "labels")
    return Steps(prompt, tuple(steps), tuple(_label(v, f"labels[{i}]") for i, v in enumerate(labels)), source)


def _split(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """An implicit prompt and the two completions: see `nashpref.llm.data.read`."""
    both = list(zip(chosen, rejected, strict=False))
    at = next((k for k, (a, b) in enumerate(both) if a != b), len(both))
    if isinstance(chosen, str) and isinstance(rejected, str):
        if ASSISTANT in chosen or ASSISTANT in rejected:
            last = chosen.rfind(ASSISTANT, 0, at)
            at = last + len(ASSISTANT) if last >= 0 else 0
        elif any(map(str.isspace, chosen + rejected)):
            ends = (
                k for k in range(at, 0, -1) if chosen[k : k + 1].isspace() and rejected[k : k + 1].isspace()
            )
            at = next(ends, 0)
    elif not isinstance(chosen, str) and not isinstance(rejected, str):
        while at and not all(len(t) > at and t[at]["role"] == "assistant" for t in (chosen, rejected)):
            at -= 1  # they part in what the user says, which is no answer to what came before
    else:
        raise ValueError("chosen and rejected: one is text and the other messages; give both in one way")
    if not at:
        raise ValueError(
            "prompt: is missing, and chosen and rejected do not begin with the same one; add a column prompt"
        )
    return chosen[:at], chosen[at:], rejected[at:]


def _prompt(value: Any, name: str) -> Text:
    prompt = _text(value, name)
    if not isinstance(prompt, str) and (not prompt or prompt[-1]["role"] == "assistant"):
        raise ValueError(f"{name}: must end with a message to be answered, not one of the assistant's")
    return prompt


def _completion(value: Any, name: str, prompt: Text, allow_empty: bool) -> Text:
    completion = _text(value, name)
    remedy = "leave the row out, or accept it with allow_empty"
    if isinstance(completion, str):
        if not completion.strip() and not allow_empty:
            raise ValueError(f"{name}: is empty: {remedy}")
        dialogue = isinstance(prompt, str) and ASSISTANT in prompt
        if dialogue and isinstance(prompt, str) and completion.startswith(prompt):
            raise ValueError(f"{name}: repeats the prompt; say columns= without prompt to have it found")
        if dialogue and HUMAN in completion:
            raise ValueError(
                f"{name}: goes on with a human turn, which a text cannot mark; give messages, whose user "
                "turns are masked"
            )
        return completion
    if isinstance(prompt, str):
        raise ValueError(
            f"{name}: is messages while the prompt is text; give both in one way (if {name} holds the prompt "
            "too, say columns= without prompt)"
        )
    if len(prompt) < len(completion) and list(prompt) == list(completion[: len(prompt)]):
        raise ValueError(f"{name}: repeats the prompt; say columns= without prompt to have it found")
    if not completion or completion[0]["role"] != "assistant" or completion[-1]["role"] != "assistant":
        raise ValueError(f"{name}: must begin and end with a message of the assistant")
    for i, message in enumerate(completion):
        if message["role"] == "assistant" and not message["content"].strip() and not allow_empty:
            raise ValueError(f"{name}[{i}].content: is empty: {remedy}")
    return completion


def _text(value: Any, name: str) -> Text:
    if isinstance(value, str):
        return _clean(value, name)
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{name} = {str(value)[:40]}: text or a list of messages is expected")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"{name}[{i}]: is no message, which has a role and a content, both text")
        _clean(message["content"], f"{name}[{i}].content")
        messages.append({str(key): item for key, item in message.items() if item is not None})
    return tuple(messages)


def _clean(text: str, name: str) -> str:
    if "\0" in text:
        raise ValueError(f"{name}: holds a NUL character at {text.index(chr(0))}: remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: is not UTF-8 (or holds half a surrogate pair) at character {error.start}: save the "
            "text as UTF-8"
        ) from None
    return text


def _list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: a list as JSON is expected ({error})") from None
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{name} = {str(value)[:40]}: a list is expected")
    return list(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{name} = {value[:40]!r}: a number is expected") from None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} = {value!r}: a number is expected")
    return float(value)


def _whole(value: Any, name: str) -> int:
    number = _number(value, name)
    if not number.is_integer():
        raise ValueError(f"{name} = {value}: a whole number is expected")
    return int(number)


def _correct(value: Any) -> float:
    truth = _truth(value)
    return _number(value, "correct") if truth is None else float(truth)


def _label(value: Any, name: str) -> int:
    """A step that is false is wrong, which as a number is −1."""
    truth = _truth(value)
    return _whole(value, name) if truth is None else 2 * truth - 1


def _truth(value: Any) -> bool | None:
    """None for what is neither true nor false, in CSV too."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | np.bool_) else None
