"""The house rules that a reader should be able to rely on: packaging, imports, and their direction."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import nashpref

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {
    "nashpref.theory": "theory",
    "nashpref.llm": "llm",
    "nashpref.experiments": "experiments",
    "nashpref.paper_figs": "paper_figs",
}
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "cvxpy",
    "matplotlib",
    "pandas",
    "numba",
    "tqdm",
    "hypothesis",
    "yaml",
}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path, top_level_only=False):
    """Every module that `path` imports, absolute names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_list_matches_the_tree():
    folders = {"nashpref": "nashpref", **MAPPED}
    found = set()
    for package, folder in folders.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inner]))
    assert found == set(CONFIG["tool"]["setuptools"]["packages"])
    assert CONFIG["tool"]["setuptools"]["package-dir"] == folders


def test_the_version_is_stated_once_and_the_same():
    assert CONFIG["project"]["version"] == nashpref.__version__
    assert f"version: {nashpref.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("nashpref", ("nashpref.theory", "nashpref.llm", "nashpref.experiments", "nashpref.paper_figs")),
        ("theory", ("nashpref.llm", "nashpref.experiments", "nashpref.paper_figs")),
        (
            "paper_figs",
            (
                "nashpref.theory",
                "nashpref.llm",
                "nashpref.experiments",
                "nashpref.solve",
                "nashpref.equilibrium",
            ),
        ),
    ],
)
def test_imports_point_one_way(folder, forbidden):
    for path in modules(folder):
        if path.name == "cli.py":
            continue  # the command line is where everything meets
        for name in imports(path):
            assert not name.startswith(forbidden), f"{path.relative_to(ROOT)} imports {name}"


def test_nobody_imports_a_mapped_folder_by_its_bare_name():
    for path in [
        p for folder in ("nashpref", *MAPPED.values(), "tests", "benchmarks") for p in modules(folder)
    ]:
        for name in imports(path):
            assert name.split(".")[0] not in {"theory", "llm", "experiments", "paper_figs"}, path


def test_the_core_imports_only_numpy_and_scipy_at_module_level():
    on_demand = {"compiled.py": {"numba"}, "simplex.py": {"numba"}}  # modules that are imported lazily
    for path in modules("nashpref"):
        heavy = {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
        allowed = {"hypothesis"} if path.parent.name == "testing" else on_demand.get(path.name, set())
        assert heavy <= allowed, path


def test_import_is_light():
    heavy = HEAVY | {"scipy", "threadpoolctl"}
    code = f"import sys, nashpref; print(sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel_site(tmp_path_factory):
    """The wheel built from the sdist, installed somewhere else."""
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    site = tmp_path_factory.mktemp("site")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return site


def run_from_wheel(site, cwd, *arguments):
    # The wheel comes first on the path; that it is what gets imported is checked.
    env = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_the_wheel_works_away_from_the_checkout(wheel_site, tmp_path):
    code = (
        "import nashpref as npf, nashpref.theory, nashpref.experiments, nashpref.paper_figs\n"
        "print(npf.__file__)\n"
        "print(npf.equilibrium(npf.zoo.rock_paper_scissors()).gap <= 1e-15)\n"
    )
    out = run_from_wheel(wheel_site, tmp_path, "-c", code)
    assert out.returncode == 0, out.stderr
    where, right = out.stdout.split()
    assert where.startswith(str(wheel_site))
    assert right == "True"
    listed = run_from_wheel(wheel_site, tmp_path, "-m", "nashpref.cli", "reproduce", "--list")
    assert listed.returncode == 0, listed.stderr
    assert "spirals" in listed.stdout


def test_the_wheel_passes_the_tests_of_the_core(wheel_site, tmp_path):
    chosen = [
        "test_rules.py",
        "test_metrics.py",
        "test_closed_forms.py",
        "test_equilibrium.py",
        "test_trace.py",
    ]
    tests = [str(ROOT / "tests" / name) for name in chosen]
    out = run_from_wheel(
        wheel_site,
        tmp_path,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--import-mode=importlib",
        *tests,
    )
    assert out.returncode == 0, out.stdout + out.stderr
