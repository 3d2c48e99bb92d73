"""Markov games in files: GAME.npz for any size, GAME.json to be written by hand.

Both hold the same fields, which are the arguments of `MarkovGame`:

    format         "nashpref-game"
    version        1
    horizon        H
    states         S
    actions        A
    initial        the initial state, or a distribution, S numbers
    transition     dense: (H, S, A, S) numbers Pr(s' | h, s, a), or (S, A, S) if all steps are the same;
                   sparse: a row [h, s, a, s', probability] for each nonzero one, or [s, a, s', probability]
    preference     P, (H, S, A, S, A) numbers, or (S, A, S, A) if all steps are the same; or (S, S), of final
                   states
    state_labels   optional: H + 1 lists of names, the last one of the final states
    action_labels  optional: A names

h, s, a count from 0. A sparse file lists only states that can be reached. In an npz file `transition`,
`preference` and `initial` are arrays and the rest is JSON text, the array `metadata`, with a checksum of the
arrays. In JSON they are nested lists, and a deterministic tree can be written instead, whose leaves are
compared in the order in which they stand (`MarkovGame.from_tree`):

    {"format": "nashpref-game", "version": 1,
     "tree": {"ask": {"explain": null, "fix": null}, "fix": {"explain": null, "fix": null}},
     "preference": [[0.5, 0.7, 0.2, 0.6], …]}

What cannot be reached is not kept by a game, and is written as preference 1/2 and, where transitions are
dense, as staying where one is. `load(save(game))` is the same game, to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from nashpref.archive import PathOrStr, atomic, check_format, read_archive, write_archive
from nashpref.games.markov import MarkovGame
from nashpref.policies import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Part = tuple[IntArray, IntArray, FloatArray]  # rows, columns, and what stands there

FORMAT = "nashpref-game"
VERSION = 1
NUMBERS = ("horizon", "states", "actions")
ARRAYS = ("initial", "transition", "preference")
LABELS = ("state_labels", "action_labels")


def save(game: MarkovGame, path: PathOrStr) -> None:
    """Write the reachable part of a game; an existing file is replaced only once the new one is whole."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".json"):
        raise ValueError(f"{path}: a Markov game is saved as .npz or .json")
    fields: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    fields |= {name: int(getattr(game, name)) for name in NUMBERS}
    fields |= {name: _plain(labels) for name in LABELS if (labels := getattr(game, name)) is not None}
    starts = game.initial_states
    initial = np.array(starts[0]) if len(starts) == 1 else np.zeros(game.states)
    if initial.ndim:
        initial[starts] = game.initial_weights
    arrays = {"initial": initial, "transition": _transition(game), "preference": _preference(game)}
    if suffix == ".json":
        _write_json(path, fields, arrays)
    else:  # random numbers, of which large games are made, do not compress
        write_archive(path, fields, arrays, compressed=False)


def load(path: PathOrStr) -> MarkovGame:
    """Read what `save` wrote, or somebody by hand.

    Raises `ValueError`, which names the file, the place and the remedy, for a file that is no game, is
    damaged, comes from another version, or describes something that is no game.
    """
    try:
        if Path(path).suffix == ".json":
            fields = _read_json(path)
        else:
            metadata, arrays = read_archive(path, "game", FORMAT, VERSION)
            fields = {name: value for name, value in metadata.items() if name != "digest"} | arrays
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    try:
        return _game(fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _game(fields: Mapping[str, Any]) -> MarkovGame:
    needed = ("tree", "preference") if "tree" in fields else (*NUMBERS, *ARRAYS)
    allowed = {"format", "version", *needed, *(() if "tree" in fields else LABELS)}
    for name in needed:
        if name not in fields:
            raise ValueError(f"there is no {name!r}; a game has {', '.join(needed)}")
    for name in fields:
        if name not in allowed:
            raise ValueError(f"{name!r} is not known; a game has {', '.join(sorted(allowed))}")
    preference = _numbers(fields, "preference")
    if "tree" in fields:
        if not isinstance(fields["tree"], Mapping):
            raise ValueError("tree: it must be an object of replies")
        return MarkovGame.from_tree(fields["tree"], preference)
    for name in LABELS:
        if not isinstance(fields.get(name, []), list):
            raise ValueError(f"{name} = {fields[name]!r}: a list is needed")
    if any(not isinstance(step, list) for step in fields.get("state_labels", [])):
        raise ValueError("state_labels: a list for each step, and one for the final states, is needed")
    for name in NUMBERS:
        if type(fields[name]) is not int or fields[name] < 1:
            raise ValueError(f"{name} = {fields[name]!r}: it must be a whole number, at least 1")
    H, S, A = (fields[name] for name in NUMBERS)
    if preference.shape not in ((S, S), (S, A, S, A), (H, S, A, S, A)):
        raise ValueError(
            f"preference has shape {preference.shape}; H = {H}, S = {S}, A = {A} need ({S}, {S}) for final "
            f"states, ({H}, {S}, {A}, {S}, {A}), or ({S}, {A}, {S}, {A}) for the same at every step"
        )
    transition = _numbers(fields, "transition")
    steps, listed = None, np.ones((H, S), dtype=bool)
    if transition.ndim == 2 or not transition.size:
        steps, listed = _sparse(transition, H, S, A)
    elif transition.shape not in ((S, A, S), (H, S, A, S)):
        raise ValueError(
            f"transition has shape {transition.shape}; H = {H}, S = {S}, A = {A} need ({H}, {S}, {A}, {S}), "
            f"({S}, {A}, {S}) for the same at every step, or rows [h, s, a, s', probability]"
        )
    game = MarkovGame(
        transition if steps is None else steps,
        preference,
        _whole(_numbers(fields, "initial").tolist()),
        horizon=H,
        state_labels=_tuples(fields.get("state_labels")),
        action_labels=_tuples(fields.get("action_labels")),
    )
    for h, _ in enumerate(game.transitions):
        for s in game.reached[h][~listed[h][game.reached[h]]]:
            raise ValueError(f"transition: h={h}, s={s} can be reached, but no row says where it leads")
    return game


# --- transitions and preferences, from what a game keeps to what it was made from ---


def _transition(game: MarkovGame) -> FloatArray:
    """Dense, or rows `[h, s, a, s', p]`; without h where all steps agree."""
    if game.transitions and not isinstance(game.transitions[0], np.ndarray):
        return _rows(game)
    H, S, A = game.horizon, game.states, game.actions
    stay = np.repeat(np.eye(S), A, axis=0)

    def parts() -> Iterator[Part]:
        for h, T in enumerate(game.transitions):
            full = np.zeros((len(game.reached[h]) * A, S))
            full[:, game.reached[h + 1]] = cast(FloatArray, T)
            yield _places(game.reached[h], A), np.arange(S), full

    steps = _steps(parts, H, stay)
    return steps.reshape(*steps.shape[:-2], S, A, S)


def _preference(game: MarkovGame) -> FloatArray:
    """`P = 1/2 + A` of final states or of each step; of all steps at once where they agree."""
    S, A = game.states, game.actions
    if game.terminal:
        P = np.full((S, S), 0.5)
        P[np.ix_(game.reached[-1], game.reached[-1])] = _uncentred(game.payoffs[0])
        return P

    def parts() -> Iterator[Part]:
        for states, payoffs in zip(game.reached, game.payoffs, strict=True):
            yield _places(states, A), _places(states, A), _uncentred(payoffs)

    steps = _steps(parts, game.horizon, np.full((S * A, S * A), 0.5))
    return steps.reshape(*steps.shape[:-2], S, A, S, A)


def _uncentred(A: FloatArray) -> FloatArray:
    """P in [0, 1] with `(P − Pᵀ)/2 = A` exactly.

    The larger of a pair is 1/2 + |A|, rounded, and the smaller one lies 2|A| below it: a payoff is half the
    difference of two such numbers, so this difference has no rounding error. Where 15 digits are as good,
    they are taken: 0.1 to be read, and not 0.09999999999999998.
    """
    margin = np.abs(A)
    larger = 0.5 + margin
    smaller = larger - 2.0 * margin
    short = np.round(smaller, 15)
    smaller = np.where((larger - short) / 2.0 == margin, short, smaller)
    return np.where(A >= 0.0, larger, smaller)


def _steps(parts: Callable[[], Iterable[Part]], H: int, elsewhere: FloatArray) -> FloatArray:
    """One matrix if the steps agree where they overlap, else H; `elsewhere` where no step has a say."""
    once = np.full_like(elsewhere, np.nan)
    for rows, columns, values in parts():
        at = np.ix_(rows, columns)
        known = once[at]
        if ((known != values) & ~np.isnan(known)).any():
            break
        once[at] = values
    else:
        return np.where(np.isnan(once), elsewhere, once)
    every = np.repeat(elsewhere[None], H, axis=0)
    for step, (rows, columns, values) in zip(every, parts(), strict=False):
        step[np.ix_(rows, columns)] = values
    return every


def _rows(game: MarkovGame) -> FloatArray:
    """Sparse transitions as rows `[h, s, a, s', p]`, or without h where all steps agree."""
    A, tables = game.actions, []
    for h, T in enumerate(game.transitions):
        entries = cast("csr_array", T).tocoo()
        place, to = _places(game.reached[h], A)[entries.row], game.reached[h + 1][entries.col]
        tables.append(np.column_stack([np.full(len(to), h), place // A, place % A, to, entries.data]))
    once = np.unique(np.concatenate(tables)[:, 1:], axis=0)
    # A step agrees with the others if it has all of their rows wherever it has one.
    count = np.bincount(_place(once, A), minlength=game.states * A)
    for table in tables:
        own = np.bincount(_place(table[:, 1:], A), minlength=game.states * A)
        if ((own != count) & (own > 0)).any():
            return np.concatenate(tables)
    return once


def _sparse(table: FloatArray, H: int, S: int, A: int) -> tuple[list[csr_array], NDArray[np.bool_]]:
    """The steps that rows describe, and which states are spoken of, `(H, S)`; the others stay."""
    from scipy.sparse import csr_array

    if not table.size:
        table = np.empty((0, 5))
    if table.shape[1] not in (4, 5):
        raise ValueError(
            f"transition: a row has {table.shape[1]} numbers; it needs [h, s, a, s', probability], or "
            "[s, a, s', probability] if all steps are the same"
        )
    stationary = table.shape[1] == 4
    if stationary:
        table = np.column_stack([np.zeros(len(table)), table])
    steps = 1 if stationary else H
    for column, (name, size) in enumerate((("h", steps), ("s", S), ("a", A), ("s'", S))):
        value = table[:, column]
        wrong = ~((value >= 0) & (value < size) & (value == np.floor(value)))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"transition: row {row} has {name} = {value[row]:g}; it must be one of 0 … {size - 1}"
            )
    listed = np.zeros((steps, S), dtype=bool)
    matrices = []
    for h in range(steps):
        of_step = table[table[:, 0] == h][:, 1:]
        place, to, probability = _place(of_step, A), of_step[:, 2].astype(np.int64), of_step[:, 3]
        listed[h, place // A] = True
        silent = _places(np.flatnonzero(~listed[h]), A)
        at = (np.append(place, silent), np.append(to, silent // A))
        matrices.append(csr_array((np.append(probability, np.ones(len(silent))), at), shape=(S * A, S)))
    return matrices, np.broadcast_to(listed, (H, S))


def _place(table: FloatArray, A: int) -> IntArray:
    """`s·A + a` of rows `[s, a, s', p]`."""
    return (table[:, 0] * A + table[:, 1]).astype(np.int64)


def _places(states: IntArray, A: int) -> IntArray:
    """The places `s·A + a` of all actions in `states`."""
    return (states[:, None] * A + np.arange(A)).ravel()


# --- JSON ---


def _write_json(path: PathOrStr, fields: Mapping[str, Any], arrays: Mapping[str, FloatArray]) -> None:
    """One line for each field, and one for each row, or step, of an array."""
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in fields.items()}
    for name, array in arrays.items():
        rows = [json.dumps(_whole(row)) for row in array.tolist()] if array.ndim > 1 else None
        written[name] = (
            json.dumps(_whole(array.tolist())) if rows is None else "[\n    " + ",\n    ".join(rows) + "\n  ]"
        )
    text = ",\n".join(f"  {json.dumps(name)}: {value}" for name, value in written.items())
    with atomic(path) as temporary:
        temporary.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _read_json(path: PathOrStr) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text in UTF-8 ({error.reason} at byte {error.start})") from None
    try:
        fields = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: not a game: it must be an object with the fields of one")
    check_format(path, fields, "game", FORMAT, VERSION)
    return fields


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which a repeated name (as of a reply) would hide the first one."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return fields


def _numbers(fields: Mapping[str, Any], name: str) -> FloatArray:
    try:
        return np.asarray(fields[name], dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}: numbers are needed, in lists of equal length") from None


def _whole(value: Any) -> Any:
    """Nested numbers, whole ones (states, h, s, a) without a decimal point."""
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(label: Any) -> Any:
    """A label as JSON can hold it: tuples become lists."""
    if isinstance(label, tuple | list):
        return [_plain(part) for part in label]
    if isinstance(label, np.generic):
        label = label.item()
    if label is None or isinstance(label, str | int | float | bool):
        return label
    raise ValueError(
        f"state label {label!r}: a file holds names, numbers, and tuples of them; label the states with str"
    )


def _tuples(labels: Any) -> Any:
    return tuple(map(_tuples, labels)) if isinstance(labels, list) else labels
