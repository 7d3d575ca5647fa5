"""What docs/adapting.md says, done to a copy of the project, whose whole suite then runs.

Minutes each, so `make test` leaves them out: `make test-copies`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drawings import draw_set
from tests.helpers import PROJECT, SMALL, as_words
from tests.test_docs import ADAPTING, PARTS, import_line
from utils import commands

pytestmark = pytest.mark.copies


def copy_project(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "checkpoints", "__pycache__", ".*_cache", "demo", "cache"
    )
    shutil.copytree(PROJECT, folder, ignore=ignored)
    (folder / "checkpoints").mkdir()
    return folder


def remove(part: str, project: Path) -> None:
    """Delete a part as the table says."""
    files, lines = PARTS[part]
    for file in files:
        path = project / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for line in lines:
        text = (project / "main.py").read_text(encoding="utf-8")
        (found,) = [row for row in text.splitlines(keepends=True) if row.startswith(line)]
        (project / "main.py").write_text(text.replace(found, ""), encoding="utf-8")


def run(project: Path, *words: str) -> str:
    """Run a Python command in the copy; return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def lint(project: Path) -> None:
    run(project, "-m", "ruff", "check", ".")
    run(project, "-m", "ruff", "format", "--check", ".")


def whole_suite(project: Path, *words: str) -> None:
    lint(project)
    out = run(project, "-m", "pytest", "-n", "auto", "--dist", "loadfile", *words)
    assert re.search(r"\d+ passed", out) and "failed" not in out


def test_each_command_that_can_be_removed_has_a_row_with_its_files_and_its_line():
    files = [file for files, _ in PARTS.values() for file in files]
    lines = [line for _, lines in PARTS.values() for line in lines]
    assert all((PROJECT / file).exists() for file in files)
    named = [Path(file).stem for file in files if Path(file).match("utils/commands/*.py")]
    assert sorted(named) == commands.names()
    main = (PROJECT / "main.py").read_text(encoding="utf-8")
    assert sorted(lines) == sorted(re.findall(r"^\w+ = commands\.get\(.+\)", main, re.M))


def test_the_project_is_whole_without_all_of_its_parts(tmp_path):
    project = copy_project(tmp_path / "project")
    for part in PARTS:
        if part == "docs":  # the pages stay true without the other parts
            run(project, "-m", "pytest", "tests/test_docs.py")
        remove(part, project)
    whole_suite(project)
    found = run(project, "main.py", "help")
    assert "  train" in found and "  check" not in found and "  prepare" not in found


@pytest.mark.parametrize("part", PARTS)
def test_each_part_can_go_and_the_others_stay(part, tmp_path):
    """The suite of the core does not need the parts; here the tests of the others run."""
    project = copy_project(tmp_path / "project")
    remove(part, project)
    lint(project)
    run(project, "-m", "pytest", "--collect-only", "-q")
    others = [file for name, (files, _) in PARTS.items() if name != part for file in files]
    tests = [file for file in others if file.startswith("tests/test_")]
    run(
        project, "-m", "pytest", "-n", "auto", "--dist", "loadfile", "tests/test_options.py", *tests
    )


def test_the_model_and_the_data_set_of_the_page_stand_every_test(tmp_path):
    project = copy_project(tmp_path / "project")
    for block in re.findall(r"```python\n(.+?)```", ADAPTING, re.S):
        path = re.match(r"# (\S+)\n", block)[1]
        (project / path).write_text(block, encoding="utf-8")
        with (project / path).with_name("__init__.py").open("a", encoding="utf-8") as file:
            file.write(import_line(path))
    draw_set(tmp_path / "flowers", count=60, kinds=("rose", "tulip"), flat=True)
    options = SMALL | {"model": "Tiny", "dataset": "Flowers", "max_epoch": 1}
    options |= {"train_data_root": tmp_path / "flowers" / "train"}
    assert "21 rose, 21 tulip" in run(project, "main.py", "train", *as_words(options))
    whole_suite(project)


@pytest.mark.skipif("new" not in commands.names(), reason="the command new was removed")
@pytest.mark.parametrize(
    "words",
    [
        ["--classes=rose,tulip"],
        ["--without=board,prepare"],
        ["--without=all", "--classes=oak,fir,elm"],
    ],
)
def test_a_new_project_is_green_and_does_not_know_this_ones_classes(words, tmp_path):
    run(PROJECT, "main.py", "new", tmp_path / "own", *words)
    found = subprocess.run(
        ["git", "grep", "-iwl", "cat\\|dog"], cwd=tmp_path / "own", capture_output=True, text=True
    ).stdout.split()
    assert {*found} <= {"utils/drawing.py"}  # what `prepare --source=demo` draws
    whole_suite(tmp_path / "own")
