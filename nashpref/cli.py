"""The `nashpref` command.

Exit status: 0 done; 2 bad input, one line on stderr that names the file, the place and the remedy, and
nothing written; 130 interrupted, work saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import nashpref as npf
from nashpref.mirror import Geometry, UpdateRule
from nashpref.named_rules import RULES, make_rule, nearest
from nashpref.report import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("nashpref: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `nashpref rank … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(_describe(error))


def _solve(options: argparse.Namespace) -> int:
    if options.top < 1:
        raise ValueError(f"--top {options.top}: print at least one response, or state")
    outputs = _writable(options, "out", "csv", "figure")
    game = _read_markov_game(options) if _is_markov(options.game) else _read_game(options)
    rule = _rule(options.rule, options)
    resume = None if options.resume is None else npf.Trace.load(options.resume)
    try:
        trace = npf.solve(
            game,
            rule,
            options.steps,
            geometry=options.geometry,
            tol=options.tol,
            resume=resume,
            checkpoint=options.out,
            progress=True,
        )
    except npf.Interrupted as interrupt:
        kept = options.out or _unused(f"{Path(options.game).stem}.{options.rule}.npz")
        interrupt.trace.save(kept)
        done = interrupt.trace.snapshot.step
        print(f"nashpref: interrupted after {done} steps; go on with --resume {kept}", file=sys.stderr)
        return 130
    for path, write in ((options.out, trace.save), (options.csv, trace.to_csv)):
        if path is not None:
            write(path)
    if options.figure is not None:
        from nashpref.paper_figs import convergence

        convergence.figure({type(rule).__name__: trace}, options.figure)
    print(report(game, trace, options.top))
    for path in outputs:
        print(f"wrote {path}")
    return 0


def _rank(options: argparse.Namespace) -> int:
    outputs = _writable(options, "json", "figure")
    if options.bootstrap < 0:
        raise ValueError(f"--bootstrap {options.bootstrap}: the number of resamples must be ≥ 0")
    if _is_markov(options.game):
        raise ValueError(f"{options.game}: a Markov game cannot be ranked, only responses can: solve it")
    game = _read_game(options)
    if options.bootstrap and game.counts is None:
        raise ValueError(
            f"{options.game}: intervals need the number of comparisons of each pair: add --counts FILE, "
            "or rank comparison records"
        )
    ranking = npf.rank(
        game, bootstrap=options.bootstrap, rng=np.random.default_rng(options.seed), progress=True
    )
    print(ranking.table())
    if options.json is not None:
        Path(options.json).write_text(ranking.to_json() + "\n", encoding="utf-8")
    if options.figure is not None:
        from nashpref.paper_figs import rank

        rank.figure(ranking, options.figure)
    for path in outputs:
        print(f"wrote {path}")
    return 0


def _theorems(options: argparse.Namespace) -> int:
    outputs = _writable(options, "csv")
    from nashpref.theory import check_all, summarise, table, write_csv

    rows = check_all(progress=True)
    print(table(rows))
    if options.csv is not None:
        write_csv(rows, options.csv)
    for path in outputs:
        print(f"wrote {path}")
    return 0 if all(theorem.as_expected for theorem in summarise(rows)) else 1


def _reproduce(options: argparse.Namespace) -> int:
    from nashpref.experiments import EXPERIMENTS, missing, reproduce

    if options.list:
        width = max(map(len, EXPERIMENTS))
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:<{width}}  {experiment.title}")
        return 0
    for name in options.names:
        if name not in EXPERIMENTS:
            raise ValueError(f"no experiment {name!r}{nearest(name, EXPERIMENTS)}; --list shows them all")
    names, out = options.names, Path(options.out)
    if not names:
        skipped = [name for name in EXPERIMENTS if missing(name)]
        names = [name for name in EXPERIMENTS if name not in skipped]
        if skipped:
            print(f"nashpref: skipping {', '.join(skipped)}: pip install 'nashpref[llm]'", file=sys.stderr)
    for path in reproduce(names, size=options.size, out=out, data=options.data, progress=True):
        print(f"wrote {path}")
    return 0


def _train(options: argparse.Namespace) -> int:
    try:
        from nashpref.llm import command
    except ModuleNotFoundError as error:
        raise ValueError(f"train needs {error.name}: pip install 'nashpref[llm]'") from None
    skip = ["data.skip_bad=true"] if options.skip_bad else []
    return command.main(options.config, [*skip, *options.set])


def _evaluate(options: argparse.Namespace) -> int:
    outputs = _writable(options, "json", "figure")
    try:
        from nashpref.llm import evaluate_command
        from nashpref.llm.evaluation_report import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f"evaluate needs {error.name}: pip install 'nashpref[llm]'") from None
    names = [field.name for field in dataclasses.fields(Settings) if field.name != "columns"]
    given = {name: getattr(options, name) for name in names}
    code = evaluate_command.main(
        Settings(**given, columns=_columns(options) or None), options.json, options.figure
    )
    for path in outputs:
        print(f"wrote {path}")
    return code


def _generate(options: argparse.Namespace) -> int:
    _writable(options, "out")
    try:
        from nashpref.llm import generate_command
    except ModuleNotFoundError as error:
        raise ValueError(f"generate needs {error.name}: pip install 'nashpref[llm]'") from None
    names = [field.name for field in dataclasses.fields(generate_command.Settings)]
    given = {name: getattr(options, name) for name in names if name != "columns"}
    settings = generate_command.Settings(**given, columns=_columns(options) or None)
    code = generate_command.main(settings, options.out)
    if code == 0:
        print(f"wrote {options.out}")
    return code


def _columns(options: argparse.Namespace) -> dict[str, str]:
    columns = {}
    for item in options.column:
        key, equals, name = item.partition("=")
        if not equals:
            raise ValueError(f"--column {item}: write it as FIELD=COLUMN, such as chosen=best")
        columns[key] = name
    return columns


def _zoo(options: argparse.Namespace) -> int:
    from nashpref.games import examples

    if options.list or options.name is None:
        if options.name is not None or options.out is not None:
            raise ValueError("--list: it takes no NAME and no --out")
        width = max(map(len, examples.EXAMPLES))
        for name, example in examples.EXAMPLES.items():
            print(f"{name:<{width}}  {example.title}")
        return 0
    if options.name not in examples.EXAMPLES:
        near = nearest(options.name, examples.EXAMPLES)
        raise ValueError(f"no game {options.name!r} in the zoo{near}; --list shows them all")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: it must be ≥ 0")
    markov = options.name in examples.MARKOV
    if options.out is None:
        options.out = f"{options.name}.{'json' if markov else 'csv'}"
    if not options.out.endswith((".json", ".npz") if markov else ".csv"):
        raise ValueError(f"{options.out}: {options.name} is saved as {'.json or .npz' if markov else '.csv'}")
    outputs = _writable(options, "out")
    game = examples.make(options.name, options.seed)
    if isinstance(game, npf.MarkovGame):
        game.save(options.out)
    else:
        game.to_csv(options.out)
    print(f"{game!r}")
    for path in outputs:
        print(f"wrote {path}")
    return 0


def _is_markov(path: str) -> bool:
    return path.endswith((".npz", ".json"))


def _read_markov_game(options: argparse.Namespace) -> npf.MarkovGame:
    """A game file, to which the options of matrices and comparison records do not apply."""
    for name, unset in (("counts", None), ("symmetrise", False), ("prior", 0.0), ("missing", "error")):
        if getattr(options, name) != unset:
            raise ValueError(f"{options.game}: --{name} does not belong to a Markov game; leave it out")
    return npf.MarkovGame.load(options.game)


def _read_game(options: argparse.Namespace) -> npf.MatrixGame:
    """A labelled matrix (CSV), or comparison records (JSONL, or a CSV with their columns)."""
    path: str = options.game
    if Path(path).is_dir():
        raise ValueError(f"{path}: a directory; give a CSV matrix or a file of comparisons")
    if not path.endswith(".csv") or _has_records(path):
        if options.counts is not None or options.symmetrise:
            raise ValueError(
                f"{path}: --counts and --symmetrise belong to a matrix; these are comparison records"
            )
        return npf.MatrixGame.from_comparisons(path, prior=options.prior, missing=options.missing)
    if options.prior or options.missing != "error":
        raise ValueError(f"{path}: --prior and --missing belong to comparison records; this is a matrix")
    return npf.MatrixGame.from_csv(path, counts=options.counts, symmetrise=options.symmetrise)


def _has_records(path: str) -> bool:
    """Whether a CSV's header is that of comparison records."""
    with open(path, "rb") as file:
        header = file.readline(4096).decode("utf-8-sig", errors="replace")
    columns = {column.strip().strip('"') for column in header.split(",")}
    return {"winner", "loser"} <= columns or {"a", "b", "p_a"} <= columns or {"model_a", "model_b"} <= columns


def _rule(name: str, options: argparse.Namespace) -> UpdateRule:
    """The named rule with the given options."""
    given: dict[str, object] = {
        key: value for key in ("beta", "eta") if (value := getattr(options, key)) is not None
    }
    for item in options.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: write it as NAME=VALUE")
        given[key] = value
    return make_rule(name, given)


def _writable(options: argparse.Namespace, *names: str) -> list[str]:
    """The output paths that were asked for, after checking that each can be written, before any work."""
    paths = [path for name in names if (path := getattr(options, name)) is not None]
    if "figure" in names and options.figure and not options.figure.endswith((".png", ".pdf", ".svg")):
        raise ValueError(f"{options.figure}: a figure is a .png, .pdf or .svg")
    for path in map(Path, paths):
        if path.is_dir():
            raise ValueError(f"{path}: is a directory; name a file")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no directory {path.parent}; create it first")
        if path.exists() and not options.force:
            raise ValueError(f"{path}: exists already; choose another name, or --force to replace it")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path}: not writable")
    return paths


def _unused(name: str) -> str:
    path, k = Path(name), 1
    while path.exists():
        path, k = Path(f"{Path(name).stem}-{k}.npz"), k + 1
    return str(path)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _fail(message: str) -> int:
    print(f"nashpref: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """Argparse with one-line errors and no guessed abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nashpref", description="Game-theoretic preference optimization, exactly.")
    parser.add_argument("--version", action="version", version=f"nashpref {npf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    def game(sub: argparse.ArgumentParser, also: str = "") -> None:
        sub.add_argument("game", help=f"labelled CSV matrix, or comparison records (JSONL or CSV){also}")
        matrix = sub.add_argument_group("if it is a matrix")
        matrix.add_argument("--counts", metavar="CSV", help="comparisons behind each pair, a labelled matrix")
        matrix.add_argument("--symmetrise", action="store_true", help="average P[i, j] and 1 − P[j, i]")
        records = sub.add_argument_group("if it is comparison records")
        records.add_argument(
            "--prior", type=float, default=0.0, help="pseudo-wins added to both sides of a pair"
        )
        records.add_argument(
            "--missing", choices=("error", "half"), default="error", help="pairs that were never compared"
        )

    def force(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--force", action="store_true", help="replace output files that exist")

    sub = command("reproduce", _reproduce, "run the experiments and draw their figures")
    sub.add_argument("names", nargs="*", metavar="NAME", help="experiments (default: all that can run)")
    sub.add_argument("--list", action="store_true", help="list the experiments")
    size = sub.add_mutually_exclusive_group()
    for flag, text in (("quick", "small settings, for a look"), ("full", "more games and steps")):
        size.add_argument(f"--{flag}", dest="size", action="store_const", const=flag, help=text)
    sub.add_argument("--out", default="results", help="folder for results and figures (default: results)")
    sub.add_argument(
        "--data", nargs="*", default=[], metavar="CSV", help="real preference matrices to include"
    )
    sub.set_defaults(size="default")

    sub = command(
        "solve", _solve, "run a rule on a preference game, the gap of every recorded iterate traced"
    )
    game(sub, "; or a Markov game (.npz or .json)")
    sub.add_argument("--rule", required=True, metavar="RULE", help=", ".join(RULES))
    sub.add_argument("--beta", type=float, help="weight of the KL to the (uniform) reference")
    sub.add_argument("--eta", type=float, help="step size (default: the rule's theorem's own)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other option of the rule"
    )
    sub.add_argument(
        "--geometry",
        choices=[str(geometry) for geometry in Geometry],
        help="of a Markov game (default: the rule's own)",
    )
    sub.add_argument("--steps", type=int, default=10_000, help="iterations (default: 10000)")
    sub.add_argument("--tol", type=float, help="stop at this gap")
    sub.add_argument("--out", metavar="NPZ", help="save the trace, and every half minute what there is of it")
    sub.add_argument("--csv", metavar="CSV", help="save the recorded columns")
    sub.add_argument("--figure", metavar="PNG", help="draw the gap against the iterations")
    sub.add_argument("--resume", metavar="NPZ", help="go on from a saved trace")
    sub.add_argument("--top", type=int, default=10, help="responses, or states, to print (default: 10)")
    force(sub)

    sub = command("rank", _rank, "Nash beside Bradley–Terry, cycles, and what no reward can express")
    game(sub)
    sub.add_argument("--bootstrap", type=int, default=0, metavar="N", help="resamples for intervals")
    sub.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    sub.add_argument("--json", metavar="FILE", help="save everything as JSON")
    sub.add_argument("--figure", metavar="PNG", help="draw it")
    force(sub)

    sub = command("zoo", _zoo, "write an example game to a file, or list them")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the game")
    sub.add_argument("--list", action="store_true", help="list the games")
    sub.add_argument(
        "--out", metavar="FILE", help="a CSV matrix, or a .json or .npz Markov game (default: by name)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of a random game (default: 0)")
    force(sub)

    sub = command(
        "theorems", _theorems, "check every bound on games where it applies; exit 1 if one surprises"
    )
    sub.add_argument("--csv", metavar="CSV", help="save every single check")
    force(sub)

    sub = command("train", _train, "train a policy or a preference model as a YAML file says")
    sub.add_argument("config", metavar="CONFIG.yaml", help="method, model, data and options of training")
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="an option, such as train.seed=1"
    )
    sub.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")

    sub = command("evaluate", _evaluate, "measure a saved preference model or policy on data")
    sub.add_argument("model", metavar="FOLDER", help="a saved preference model or causal language model")
    sub.add_argument("--data", required=True, metavar="FILE", help="records: JSONL, JSON, CSV or Parquet")
    sub.add_argument(
        "--column", action="append", default=[], metavar="FIELD=COLUMN", help="where columns have other names"
    )
    sub.add_argument("--skip-bad", action="store_true", help="leave bad rows out, and count them")
    sub.add_argument("--bins", type=int, default=10, help="of the calibration (default: 10)")
    sub.add_argument("--batch-size", type=int, default=16, help="sequences at once (default: 16)")
    sub.add_argument("--seed", type=int, default=0, help="of samples and intervals (default: 0)")
    policy = sub.add_argument_group("if it is a policy")
    policy.add_argument("--reference", metavar="FOLDER", help="policy from which the KL is wanted")
    policy.add_argument("--against", metavar="FOLDER", help="policy to play against")
    policy.add_argument("--preference", metavar="FOLDER", help="preference model that decides who wins")
    policy.add_argument("--samples", type=int, default=4, help="for each prompt and policy (default: 4)")
    policy.add_argument("--prompts", type=int, help="sample for so many, drawn at random (default: all)")
    policy.add_argument(
        "--max-new-tokens", type=int, default=128, help="longest completion sampled (default: 128)"
    )
    policy.add_argument("--temperature", type=float, default=1.0, help="of the samples (default: 1)")
    sub.add_argument("--json", metavar="FILE", help="save everything as JSON")
    sub.add_argument("--figure", metavar="PNG", help="draw the calibration of a preference model")
    force(sub)

    sub = command("generate", _generate, "answer prompts with a saved policy, by a method of decoding")
    sub.add_argument("model", metavar="FOLDER", help="a saved causal language model")
    sub.add_argument("--data", required=True, metavar="FILE", help="records with prompts, as evaluate takes")
    sub.add_argument("--out", required=True, metavar="JSONL", help="a line for each prompt")
    sub.add_argument(
        "--method",
        default="sample",
        help="sample (default), greedy, best_of_n, bradley_terry, equilibrium, guided or cards",
    )
    sub.add_argument("--reward", metavar="FOLDER", help="Bradley–Terry, prefix value or FaRMA model")
    sub.add_argument("--preference", metavar="FOLDER", help="preference model that compares the responses")
    sub.add_argument("--samples", type=int, help="responses; n of best of n (default: 16 there, else 1)")
    sub.add_argument("--temperature", type=float, help="of the samples (default: 1)")
    sub.add_argument("--beta", type=float, help="weight of the KL of equilibrium, guided and cards")
    sub.add_argument("--top-k", type=int, help="candidates for the next token, of guided (default: 10)")
    sub.add_argument(
        "--min-p", type=float, help="their least probability relative to the first's (default: 0)"
    )
    for name in ("goal", "floor", "entropy"):
        sub.add_argument(f"--{name}", type=float, help="of cards")
    sub.add_argument("--max-new-tokens", type=int, default=128, help="longest response (default: 128)")
    sub.add_argument("--batch-size", type=int, default=16, help="responses at once (default: 16)")
    sub.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    sub.add_argument(
        "--column", action="append", default=[], metavar="FIELD=COLUMN", help="where columns have other names"
    )
    sub.add_argument("--skip-bad", action="store_true", help="leave bad rows out")
    force(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
