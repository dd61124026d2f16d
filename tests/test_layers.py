"""The layout: a room imports only from floors below it, no two files import each other, heavy libraries stay away."""

import ast
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from counterpoise.cli import main

# From the ground up. A room may import from every floor below its own and from nothing beside it.
FLOORS = [
    {"errors"},
    {"core"},
    {"storage", "config"},
    {"execution"},
    {"data", "generators", "scoring", "evaluation", "tracking"},
    {"training", "report", "testbed"},
    {"synthesis.prompts", "synthesis.feedback"},
    {"synthesis.pool"},
    {"synthesis.selection"},
    {"workflow"},
    {"comparison", "export"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms on the same floor that may import one another, in one direction: (who, whom)
BESIDE = {("synthesis.feedback", "synthesis.prompts")}
# Nothing but jobs and tests imports the tool that trains the small models
TOOLS = {"testbed"}
# What these import at their top must be cheap: commands answer before anything heavy is loaded
LIGHT = {
    "errors", "core", "storage", "config", "synthesis.prompts", "synthesis.selection.strategies",
    "synthesis.pool.address", "generators.identity", "scoring.identity", "workflow.suite", "cli", "data.audit",
    "data.imbalance", "data.tint",
}  # fmt: skip
HEAVY = {"torch", "torchvision", "ray", "mlflow", "diffusers", "open_clip", "matplotlib", "scipy", "sklearn"}

PACKAGE = Path(__file__).parents[1] / "platform" / "counterpoise"
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def room_of(module: str) -> str:
    """The room that a module is in: its package, a sub-package of synthesis, or itself at the root."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if first == "synthesis" and rest else first


@cache
def imports(module: str, top_level_only: bool = False) -> frozenset[str]:
    """Everything that a file imports, by dotted name; also what only type checkers look at, unless at the top only."""
    tree = ast.parse(FILES[module].read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def neighbours(module: str) -> set[str]:
    """The project's own files that a file imports."""
    found = set()
    for name in imports(module):
        if name.startswith("counterpoise."):
            own = name.removeprefix("counterpoise.")
            found.add(own if own in FILES else own.rpartition(".")[0])
    return found - {module, "", "__version__"}


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_the_floors_below(module):
    room = room_of(module)
    assert room in FLOOR or room == "synthesis", f"{room} has no floor: add it to FLOORS"
    for other in map(room_of, neighbours(module)):
        if other == room or (room, other) in BESIDE:
            continue
        assert other not in TOOLS, f"{module} imports {other}, which is a tool for jobs"
        assert FLOOR[other] < FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


def test_no_two_files_import_each_other_even_around_a_corner():
    """Imports that only type checkers or function bodies make count, too."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(neighbours(module) & FILES.keys()):
                visit(other, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


@pytest.mark.parametrize("module", FILES)
def test_light_rooms_stay_light(module):
    if module in LIGHT or room_of(module) in LIGHT:
        heavy = {name.split(".")[0] for name in imports(module, top_level_only=True)} & HEAVY
        assert not heavy, f"{module} imports {heavy} at its top"


def test_the_root_holds_errors_alone():
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py", "errors.py"] or {
        path.name for path in PACKAGE.glob("*.py")
    } == {"__init__.py", "errors.py"}


def test_the_source_root_is_not_a_package():
    assert not (PACKAGE.parent / "__init__.py").exists()
    code = "import platform; print(platform.python_version())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith("3.")


@pytest.mark.parametrize("module", FILES)
def test_files_have_one_subject_and_a_readable_length(module):
    assert len(FILES[module].read_text().splitlines()) <= 400


def test_help_imports_nothing_heavy_and_answers_in_under_a_second():
    code = (
        "import sys; sys.argv = ['counterpoise', '--help']\n"
        "from counterpoise.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "counterpoise run demo" in done.stdout
    assert min(seconds) < 1.0


SMALL = ["data.per_cell={train: 40, validation: 4, test: 4}", "training.epochs=1", "seeds=[0]", "methods=[erm]"]


def check_imports(command: str, *arguments: str, forbidden: set[str] = HEAVY) -> None:
    """Run a command in a process of its own, which must not import these modules."""
    code = (
        f"import sys; sys.argv = {['counterpoise', command, 'demo', *arguments, '--json']!r}\n"
        "from counterpoise.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {forbidden!r} & set(sys.modules), {forbidden!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_look_before_the_run_imports_nothing_heavy(command, tmp_path):
    """Torch, Ray and diffusers would make seven seconds of these two commands."""
    small = ["data.per_cell={train: 40, validation: 1, test: 1}", f"store={tmp_path}"]
    check_imports(command, *small)


def test_results_in_the_store_are_read_without_what_computes_them(tmp_path):
    """MLflow is imported, where runs are tracked. Of scipy it takes a part, which is why one module stands for it."""
    arguments = [*SMALL, "tracking.enabled=false", f"store={tmp_path}"]
    with pytest.raises(SystemExit) as end:
        main(["train", "demo", *arguments, "--json"])
    assert not end.value.code
    check_imports("evaluate", *arguments, forbidden=HEAVY - {"scipy"} | {"scipy.stats"})
