"""What holds for the project as a whole: targets, packages, licence, and rules that no linter knows."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARY = [*ROOT.glob("flowstate/**/*.py"), *ROOT.glob("flight_server/**/*.py"), *ROOT.glob("sql/**/*.py")]
PYTHON = [*LIBRARY, *ROOT.glob("tests/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/**/*.py")]


def names(paths: list[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed; install GNU make to run this")
def test_make_shows_every_target_that_it_has() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets is not None
    assert set(re.findall(r"^ *make ([\w-]+) +\w", said, re.MULTILINE)) == set(targets[1].split())
    assert {"setup", "demo", "test", "lint", "bench", "help", "clean"} <= set(targets[1].split())


def test_ci_runs_lint_and_then_the_tests_so_that_it_ends_with_their_summary() -> None:
    path = ROOT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    lines = path.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make lint", "make test"]


@pytest.mark.parametrize("package", ["flowstate", "flowstate_flight", "flowstate_http", "flowstate_sql"])
def test_packages_are_importable(package: str) -> None:
    found = importlib.import_module(package)
    assert all(Path(each).resolve().is_relative_to(ROOT) for each in found.__path__)


def test_the_wheel_has_the_packages_and_the_source_roots_are_none() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    roots = ["flight_server/flowstate_flight", "flight_server/flowstate_http", "sql/flowstate_sql"]
    assert packages == ["flowstate", *roots]
    for folder in ("flight_server", "sql", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_the_installed_version_is_the_one_of_the_project() -> None:
    try:
        installed = metadata.version("flowstate")
    except metadata.PackageNotFoundError:
        pytest.skip("flowstate is not installed here: `make setup` installs it")
    assert installed == PROJECT["project"]["version"]


def test_lower_bounds_are_versions_that_the_tests_run_with() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in [*PROJECT["project"]["dependencies"], *extras["s3"], *extras["test"]]:
        name, _, bound = requirement.partition(">=")
        assert bound, f"{requirement} has no lower bound"
        installed = tuple(map(int, re.findall(r"\d+", metadata.version(name))[:3]))
        assert installed >= tuple(map(int, bound.split("."))), requirement


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    for part in ("Apache License", "Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS"):
        assert part in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_every_module_that_annotates_has_postponed_annotations() -> None:
    def annotates(path: Path) -> bool:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.AnnAssign)
        return any(isinstance(node, kinds) for node in ast.walk(ast.parse(path.read_text())))

    line = "from __future__ import annotations"
    assert names([path for path in PYTHON if annotates(path) and line not in path.read_text()]) == []


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    assert names([path for path in PYTHON if marks.search(path.read_text())]) == []


def test_every_skipped_test_says_how_to_run_it() -> None:
    silent = []
    for path in ROOT.glob("tests/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("xfail", "importorskip"):
                silent.append(f"{path.name}:{node.lineno}")
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            named = {keyword.arg for keyword in node.keywords}
            if (node.func.attr == "skip" and not node.args and "reason" not in named) or (
                node.func.attr == "skipif" and "reason" not in named
            ):
                silent.append(f"{path.name}:{node.lineno}")
    assert silent == []


def test_the_library_hashes_with_its_own_hash() -> None:
    """Python's differs between processes; a value's own `__hash__` may use it, since that stays in one process."""
    found = []
    for path in LIBRARY:
        tree = ast.parse(path.read_text())
        allowed = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name == "__hash__"
            for node in ast.walk(function)
        }
        found += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "hash"
            and id(node) not in allowed
        ]
    assert found == []


def test_no_package_registry_is_named() -> None:
    """Where packages come from is the business of the machine's own pip, Maven and Go settings."""
    hosts = re.compile("|".join(["pypi" + r"\.org", "python" + "hosted", r"repo1?\.maven", "proxy" + r"\.golang"]))
    files = [*PYTHON, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *ROOT.glob("tests/**/*.xml")]
    assert names([path for path in files if hosts.search(path.read_text())]) == []


def test_importing_the_library_starts_nothing_and_is_no_cluster() -> None:
    """`import flowstate` and building a flow need neither Dask nor Kafka nor a thread."""
    script = "import sys, threading, flowstate; print(threading.active_count(), 'distributed' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "False"]


def test_the_command_says_its_version() -> None:
    command = Path(sys.executable).parent / "flowstate"
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said == f"flowstate {metadata.version('flowstate')}\n"
