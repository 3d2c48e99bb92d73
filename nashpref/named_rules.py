"""Rules by their names, as the command line and configuration files write them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping

import nashpref.rules as rules
from nashpref.mirror import UpdateRule

RULES: Mapping[str, Callable[..., UpdateRule]] = {
    "best-response": rules.BestResponse,
    "comal": rules.COMAL,
    "egpo": rules.EGPO,
    "gda": rules.GDA,
    "mmd": rules.MMD,
    "mnpo": rules.MNPO,
    "mpo": rules.MPO,
    "mtpo": rules.MTPO,
    "mtpo-tau": rules.MTPOTau,
    "mwu": rules.MWU,
    "nash-ema": rules.NashEMA,
    "nash-md": rules.NashMD,
    "nash-mp": rules.NashMP,
    "ogda": rules.OGDA,
    "ompo": rules.OMPO,
    "onpo": rules.ONPO,
}


def make_rule(name: str, options: Mapping[str, object]) -> UpdateRule:
    """The rule `name` with these options.

    Args:
        name: one of `RULES`.
        options: of the rule; text stands for an integer, a number, several numbers (with commas) or a name.

    Raises:
        ValueError: no such rule, no such option, one that is missing or that the rule refuses; what would fit
            is named.
    """
    if name not in RULES:
        raise ValueError(f"no rule {name!r}{nearest(name, RULES)}; rules: {', '.join(RULES)}")
    make = RULES[name]
    fields = {field.name: field for field in dataclasses.fields(make)}  # type: ignore[arg-type]
    for key in options:
        if key not in fields:
            raise ValueError(
                f"{name} has no option {key!r}{nearest(key, fields)}; it has: {', '.join(fields)}"
            )
    for key, field in fields.items():
        if key not in options and field.default is dataclasses.MISSING:
            raise ValueError(f"{name} needs {key}")
    try:
        return make(**{key: _value(key, value) for key, value in options.items()})
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def nearest(name: str, names: Iterable[str]) -> str:
    """ " (did you mean 'this'?)", or nothing when no name is like it."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _value(key: str, value: object) -> object:
    """Of an option, text as what it stands for, and lists as the tuples that rules have."""
    if isinstance(value, list):
        return tuple(_value(key, item) for item in value)
    if not isinstance(value, str):
        return value
    try:
        if "," in value:
            return tuple(float(part) for part in value.split(","))
        return int(value) if value.lstrip("+-").isdigit() else float(value)
    except ValueError:
        if value.isidentifier():
            return value
        raise ValueError(f"{key} = {value!r}: neither a number nor a name") from None
