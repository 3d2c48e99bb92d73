"""The README's Python blocks run in order and print what it says; so do the commands of its walk-through."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from nashpref.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"```(?P<language>python|sh)\n(?P<source>.*?)```(?:\n\n```text\n(?P<text>.*?)```)?", re.DOTALL
)
WALK = README.index("## From a file of pairs")
WALK_END = README.index("\n## ", WALK)


def test_the_examples_print_what_the_readme_says(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = {"__name__": "readme"}
    for block in BLOCK.finditer(README):
        language, source, expected = block["language"], block["source"], block["text"] or ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if language == "python":
                exec(compile(source, "README.md", "exec"), names)
            elif WALK < block.start() < WALK_END:
                for line in source.splitlines():
                    assert main(shlex.split(line)[1:]) == 0, line
        if language == "python":
            assert printed.getvalue() == expected
        elif printed.getvalue():
            assert_lines_are_there(printed.getvalue(), expected)
    torch.set_num_threads(threads)
    assert (tmp_path / "convergence.png").exists()
    assert (tmp_path / "results/dpo_cpu/model/model.safetensors").exists()


def assert_lines_are_there(printed, expected):
    """All but their numbers, which depend on the machine."""

    def words(line):
        return " ".join(re.sub(r"[\d.-]+", "0", line).split())

    there = [words(line) for line in printed.splitlines()]
    for line in expected.splitlines():
        assert any(each.startswith(words(line.removesuffix("…"))) for each in there), line


def test_every_file_the_readme_links_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
