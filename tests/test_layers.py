"""Imports point one way, and the core is pure."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("tasks", "producer", "lab", "experiments")  # each may import itself and what stands before it
TASKS_MAY = {"tasks", "celery", "kombu", "redis", *sys.stdlib_module_names}
WHEN_CALLED = {("tasks/cpu.py", "numpy")}
"""What one job alone needs, imported inside it: a worker that never runs `sine` does not load NumPy, nor need it."""
PURE = (
    *("producer/pacers.py", "producer/payloads.py", "lab/model.py", "lab/plan.py", "lab/stats.py", "lab/verdict.py"),
    *(
        "lab/checks.py",
        "lab/axes.py",
        "lab/wire.py",
        "lab/predictions.py",
        "lab/usl.py",
        "lab/shares.py",
        "lab/bill.py",
        "lab/load/draws.py",
        "lab/load/idents.py",
        "lab/load/stages.py",
        "lab/load/lines.py",
        "lab/load/books.py",
        "lab/load/doubts.py",
        "lab/story.py",
        "lab/peers.py",
        "lab/drains.py",
        "lab/answers.py",
        "lab/halving.py",
        "lab/report",
        *(f"lab/load/{name}.py" for name in ("batches", "charts", "compare", "hdr", "limit", "measures", "model")),
        *(f"lab/load/{name}.py" for name in ("page", "tables", "thresholds")),
        "experiments",
    ),
)
# A clock, files, processes, threads, the network, the machine.
# fmt: off
IMPURE = {
    "asyncio", "celery", "concurrent", "contextvars", "ctypes", "datetime", "fcntl", "glob", "http", "importlib",
    "kombu", "locale", "logging", "mmap", "multiprocessing", "os", "pathlib", "pickle", "platform", "psutil",
    "redis", "requests", "secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "subprocess", "sys", "sysconfig", "tempfile", "threading", "time", "urllib", "uuid", "zoneinfo",
}
# fmt: on
ONLY = {"random": {"Random"}, "io": {"StringIO", "BytesIO"}}  # chance with a seed, files in memory
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively: name the package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def files(*places: str) -> list[Path]:
    found = [
        path for place in places for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    return sorted(path for path in found if name_of(path) != "experiments/__main__.py")


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str):
    later = set(ORDER[ORDER.index(package) + 1 :]) | {"tests"}
    for path in (ROOT / package).rglob("*.py"):
        for name in imports(path):
            assert name.partition(".")[0] not in later, f"{name_of(path)} imports {name}"


def test_the_measured_process_carries_nothing_but_what_it_works_with():
    for path in files("tasks"):
        for name in imports(path):
            top = name.partition(".")[0]
            assert top in TASKS_MAY or (name_of(path), top) in WHEN_CALLED, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize(("path", "module"), sorted(WHEN_CALLED))
def test_what_one_job_needs_is_imported_inside_it(path: str, module: str):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import) and node.names[0].name == module]
    assert found
    assert all(id(node) in inside for node in found)


def is_pure(module: str) -> bool:
    """Whether a module of the lab or the producer belongs to the core."""
    prefixes = [place.removesuffix(".py").replace("/", ".") for place in PURE]
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


@pytest.mark.parametrize("path", files(*PURE), ids=name_of)
def test_the_core_has_no_clock_no_file_no_process_and_no_network(path: Path):
    for name in imports(path):
        top = name.partition(".")[0]
        assert top not in IMPURE, f"imports {name}"
        # Nor by way of a neighbour that has
        assert top not in {"lab", "producer"} or is_pure(name), f"imports {name}, which is not pure"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in IMPURE_CALLS, f"calls {node.func.id} in line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ONLY:
            assert node.attr in ONLY[node.value.id], f"uses {node.value.id}.{node.attr} in line {node.lineno}"


def test_the_core_is_all_there():
    assert {place for place in PURE if not files(place)} == set()
    assert len(files(*PURE)) > 12
