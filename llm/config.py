"""YAML is a dataclass: every key is a field, every field has a type, and a misspelt key is named."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

C = TypeVar("C")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, empty if the file is.

    Raises:
        ValueError: not YAML, a key that is there twice, or no mapping; with the file and the line.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)  # a SafeLoader
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict | None):
        raise ValueError(f"{path}: a mapping of options is expected, not {content!r}")
    return content or {}


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """YAML has the last of two equal keys win, which hides a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for i, key in enumerate(keys) if key in keys[:i]]:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{repeated[0]!r} is there twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


def from_mapping(content: Any, kind: type[C], place: str) -> C:
    """The dataclass `kind` from a mapping; fields that are dataclasses are mappings in it.

    Raises:
        ValueError: an unknown key (the nearest one is named), a missing one, or a value of another type or
            that the dataclass refuses; with its place, which begins with `place`, such as the file's name.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: a mapping of options is expected, not {content!r}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            close = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(fields)}"
            raise ValueError(f"{place}: no option {key!r} ({hint})")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ValueError(f"{place}: option {name!r} is missing")
    values = {key: _convert(value, hints[key], f"{place}: {key}") for key, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _convert(value: Any, hint: Any, place: str) -> Any:
    """`value` as the type `hint`: numbers are not made from text, except 1e-6, which YAML reads as text."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        complaints = []
        for option in arguments:
            if option is not type(None):
                try:
                    return _convert(value, option, place)
                except ValueError as error:
                    complaints.append(str(error))
        raise ValueError(complaints[-1])
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{place} = {value!r}: one of {', '.join(map(repr, arguments))} is expected")
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(value, hint, place)  # type: ignore[arg-type]
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(item, arguments[0], f"{place}[{i}]") for i, item in enumerate(items))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{place} = {value!r}: a mapping is expected")
        return dict(value)
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{place} = {value!r}: a number is expected") from None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{place} = {value!r}: {_NAMES.get(hint, hint.__name__)} is expected")
    return value


_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
