"""Data flows one way: a room imports only from the floors below it, and heavy libraries stay in their rooms."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

FLOORS = [
    {"errors"},
    {"ambient", "table", "store", "progress", "locate", "plugin", "cluster", "config"},
    {"view", "explain", "schedule"},
    {"compose"},
    {"data", "generators", "scoring", "evaluation"},
    {"training"},
    {"synthesis", "report", "tracking"},
    {"fitting", "likeness", "control", "rounds"},
    {"record"},
    {"experiment"},
    {"story", "export", "preview"},
    {"leaderboard", "reproduce"},
    {"doctor", "terminal"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = {"errors", "ambient", "table", "view", "store", "progress", "config", "explain", "compose", "cli", "terminal"}
LIGHT_FILES = {"data/audit", "data/imbalance", "data/tint", "evaluation/catalogue"} | {
    f"synthesis/{name}"
    for name in ("plan", "address", "prompts", "prompt_file", "grammar", "contextual", "llm", "resolve")
}
HEAVY = {"torch", "torchvision", "ray", "mlflow", "diffusers", "open_clip", "matplotlib"}

PACKAGE = Path(__file__).parents[1] / "platform" / "counterpoise"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_the_floors_below(path):
    room = room_of(path)
    if room == "testbed":  # stands beside the house: nothing but its own adapter may know of it
        return
    for module in imports(path, top_level_only=False):
        if not module.startswith("counterpoise."):
            continue
        other = module.split(".")[1]
        if other == "__version__" or other == room:
            continue
        if other == "testbed":
            assert path.relative_to(PACKAGE).parts[0] == "data", f"{path} knows of the testbed"
            continue
        assert FLOOR[other] < FLOOR[room], f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_light_rooms_stay_light(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if room_of(path) in LIGHT or name in LIGHT_FILES:
        heavy = {module.split(".")[0] for module in imports(path, top_level_only=True)} & HEAVY
        assert not heavy, f"{name} imports {heavy} at its top"


def test_the_source_root_is_not_a_package():
    assert not (PACKAGE.parent / "__init__.py").exists()
    code = "import platform; print(platform.python_version())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().startswith("3.")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_have_one_subject_and_a_readable_length(path):
    assert len(path.read_text().splitlines()) <= 400


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


@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_look_before_the_run_imports_nothing_heavy(command, tmp_path):
    """MLflow is, where runs are tracked; torch, Ray and diffusers would make seven seconds of these two commands."""
    small = ["data.per_cell={train: 40, validation: 1, test: 1}", "tracking.enabled=false", f"store={tmp_path}"]
    arguments = ["counterpoise", command, "demo", *small, "--json"]
    code = (
        f"import sys; sys.argv = {arguments!r}\n"
        "from counterpoise.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
