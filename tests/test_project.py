"""The size and shape of the code: what a reader has to read stays short."""

import ast
from pathlib import Path

from tests.helpers import PROJECT
from utils import commands


def lines_of(*patterns: str) -> int:
    files = {path for pattern in patterns for path in PROJECT.glob(pattern)}
    assert files
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def functions(path: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse((PROJECT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_train_is_a_page_with_few_names():
    train = functions("main.py")["train"]
    assert train.end_lineno - train.lineno + 1 <= 80
    stored = {
        node.id
        for node in ast.walk(train)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert len(stored | {"options"}) <= 30


def test_train_step_is_read_at_once():
    step = functions("utils/engine.py")["train_step"]
    body = [line for node in step.body[1:] for line in ast.unparse(node).splitlines()]
    assert len(body) <= 25


def test_the_reading_path_is_short():
    assert lines_of("config.py", "main.py", "utils/engine.py") <= 540


def imports_of(path: Path) -> set[str]:
    """Return the modules that a file imports, inside of functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


ROOMS = {
    *(f"utils.commands.{name}" for name in commands.names()),
    *("utils.diagnostics", "utils.preparation", "utils.drawing", "utils.checks", "utils.board"),
    *("utils.visdom_client", "utils.given_pictures", "utils.exported", "utils.sweeping"),
}


def test_the_core_imports_no_room_and_no_room_imports_main():
    core = [PROJECT / "main.py", PROJECT / "config.py"]
    for folder in ("data", "models", "utils"):
        core += (PROJECT / folder).glob("*.py")
    rooms = [path for name in ROOMS for path in PROJECT.glob(name.replace(".", "/") + "*")]
    rooms = [file for path in rooms for file in (path.rglob("*.py") if path.is_dir() else [path])]
    rooms = [path for path in rooms if path.suffix == ".py"]
    for path in core:
        wanted = imports_of(path) & ROOMS
        # The one door: the viewer asks for its client when a server answers.
        allowed = {"utils.visdom_client"} if path.name == "visualize.py" else set()
        assert path in rooms or wanted <= allowed, path
    for path in rooms:
        assert "main" not in imports_of(path), path
