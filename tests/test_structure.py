"""What imports what: scripts, benchmarks, tests → fastslots → fastslots_kernels → torch, triton."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"fastslots": ROOT, "fastslots_kernels": ROOT / "kernels"}
OUTER = {"scripts", "benchmarks", "tests", "gpu"}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by the names of their modules; a package has that of its folder."""
    root = SOURCES[package]
    paths = {
        path.relative_to(root).with_suffix(""): path for path in (root / package).rglob("*.py")
    }
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imports(path: Path, *, at_once: bool) -> Iterator[str]:
    """What a file imports, in full names; `at_once`: when it is imported itself."""

    def look(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if at_once and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} imports by a relative name"
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from look(child)

    return look(ast.parse(path.read_text()))


def module_graph(package: str, *, at_once: bool) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports."""
    known = modules(package)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        found = {
            wanted if wanted in known else wanted.rpartition(".")[0]
            for wanted in imports(path, at_once=at_once)
        }
        graph[name] = (found & known.keys()) - {name}
    return graph


def room(module: str) -> str:
    """The folder of fastslots that a module lies in; for a file beside the folders, itself."""
    return ".".join(module.split(".")[:2])


def top_packages(package: str) -> set[str]:
    found = {
        name.partition(".")[0]
        for path in modules(package).values()
        for name in imports(path, at_once=False)
    }
    return found - set(sys.stdlib_module_names)


def test_the_kernels_know_torch_and_triton_alone() -> None:
    assert top_packages("fastslots_kernels") == {"fastslots_kernels", "torch", "triton"}


def test_the_library_knows_nothing_of_what_is_built_on_it() -> None:
    assert not top_packages("fastslots") & OUTER


@pytest.mark.parametrize("package", SOURCES)
def test_no_module_is_imported_in_a_circle(package: str) -> None:
    assert list(TopologicalSorter(module_graph(package, at_once=True)).static_order())


def test_no_two_rooms_know_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for name, found in module_graph("fastslots", at_once=False).items():
        rooms.setdefault(room(name), set()).update({room(other) for other in found} - {room(name)})
    rooms.pop("fastslots")
    assert list(TopologicalSorter(rooms).static_order())


def test_the_training_engine_knows_no_model() -> None:
    known = {
        other
        for name, found in module_graph("fastslots", at_once=False).items()
        for other in found
        if name.startswith("fastslots.training")
    }
    models = {name.split(".")[2] for name in known if name.startswith("fastslots.models.")}
    shared = {path.stem for path in (ROOT / "fastslots" / "models").glob("*.py")}
    assert models <= shared


def functions() -> Iterator[tuple[str, int, bool]]:
    """Every function outside of the tests: where it is, its lines, and whether it is a kernel."""
    for folder in ("fastslots", "kernels", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                    lines = node.end_lineno - node.lineno + 1
                    yield (
                        f"{path.relative_to(ROOT)}, {node.name}",
                        lines,
                        "triton.jit" in decorators,
                    )


def test_functions_are_short_enough_to_be_read() -> None:
    too_long = {name: n for name, n, is_kernel in functions() if n > (130 if is_kernel else 100)}
    assert not too_long


def test_no_folder_of_the_benchmark_is_crowded() -> None:
    entries = Counter(
        path.parent
        for path in (ROOT / "fastslots" / "benchmark").rglob("*")
        if path.suffix == ".py" or (path / "__init__.py").exists()
    )
    assert not {str(folder): count for folder, count in entries.items() if count > 9}


def test_no_kernel_is_imported_before_the_tests_are_set_up() -> None:
    """Of folders that are named on the command line these are: then kernels would not be interpreted."""
    early = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("conftest.py")
        for name in imports(path, at_once=True)
        if name.startswith("fastslots")
    ]
    assert not early
