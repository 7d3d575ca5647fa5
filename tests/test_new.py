"""The command `new`: the project that it writes is whole, and has nothing of this one's story."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.drawings import draw_set
from tests.helpers import PROJECT, SMALL, as_words
from utils import commands
from utils.commands import new
from utils.options import UsageError

if not (PROJECT / "docs/adapting.md").exists():
    pytest.skip("docs/adapting.md was removed, whose table `new` reads", allow_module_level=True)
if not shutil.which("git"):
    pytest.skip("git is not installed", allow_module_level=True)

TABLE = new.table_of_parts()
GONE = ["board", "compare", *new.PARTS]  # from the project that most of these tests look at


def run(folder: Path, *words: object, code: int = 0, **env: str) -> str:
    """Run a Python command in a folder; return what it prints."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def git(folder: Path, *words: str) -> list[str]:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def make(folder: Path, **options: str) -> Path:
    return new.run(new.Options(folder=(folder,), **options))


def files_of(project: Path) -> set[str]:
    paths = (path.relative_to(project) for path in project.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if path.parts[0] != ".git"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Make a project by the command of the page, typed in another folder."""
    place = tmp_path_factory.mktemp("place")
    words = ("new", "flowers", "--classes=rose,tulip", "--without=board,compare")
    said = run(place, PROJECT / "main.py", *words)
    assert said.startswith(f"{place / 'flowers'} is ready, with one commit, by ")
    assert said.count("\n") == 1 and os.listdir(place) == ["flowers"]
    return place / "flowers"


def test_it_has_a_history_of_its_own_with_one_commit(made):
    assert git(made, "log", "--format=%s") == ["Start the project"]
    assert git(made, "status", "--porcelain") == []
    assert {*git(made, "ls-files")} == files_of(made)


def test_the_classes_are_its_default_data_set(made):
    text = (made / "data/flowers.py").read_text()
    assert "\nclass Flowers(Pictures):\n" in text and '\n    classes = ("rose", "tulip")\n' in text
    assert '\n    dataset: str = "Flowers"  # ' in (made / "config.py").read_text()
    assert not (made / "data/dogcat.py").exists()
    for name in ("README.md", "config.py", "data/__init__.py", "Makefile", "docs/adapting.md"):
        words = re.findall(r"(?i)\b(?:dogcat|dogs|cats)\b", (made / name).read_text("utf-8"))
        assert not words, name


def test_what_was_left_out_is_gone_with_its_lines(made):
    gone = [TABLE[part] for part in GONE]
    assert not [file for files, _ in gone for file in files if (made / file).exists()]
    main = (made / "main.py").read_text()
    assert not [line for _, lines in gone for line in lines if line in main]
    for part in {*TABLE} - {*GONE}:
        files, lines = TABLE[part]
        missing = {file for file in files if (PROJECT / file).is_file()} - files_of(made)
        assert missing <= {"tests/test_adapting.py", "tests/test_copies.py"}  # of this project
        assert all(line in main for line in lines if part in commands.names()), part


def test_readme_and_makefile_tell_what_there_is(made):
    readme = (made / "README.md").read_text(encoding="utf-8")
    left = {*commands.names()} - {*GONE}
    rows = re.findall(r"^\| `python main\.py (\w+)` \| \S", readme, re.M)
    assert {*rows} == {"train", "val", "test", "help"} | left
    assert readme.startswith("# flowers\n") and "](docs/data.md)" in readme
    assert (made / "LICENSE").read_bytes() == (PROJECT / "LICENSE").read_bytes()
    makefile = (made / "Makefile").read_text()
    targets = {*re.findall(r"^([\w/-]+):", makefile, re.M)}
    assert {"help", "test", "lint"} <= targets and not targets & {"demo", "data/demo", "bench"}
    phony = re.search(r"^\.PHONY: (.+)", makefile, re.M)[1].split()
    assert {*phony} <= targets
    assert not list((made / ".github").glob("*.png"))
    assert "![" not in (made / "docs/watching.md").read_text(encoding="utf-8")


def test_it_passes_the_linter_if_this_project_does(made):
    for words in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *words, "."]
        if subprocess.run(command, cwd=PROJECT, capture_output=True).returncode == 0:
            run(made, *command[1:])


def test_it_trains_on_its_own_classes(made):
    draw_set(made / "drawn", count=40, kinds=("rose", "tulip"), flat=True)
    shutil.move(made / "drawn/train", made / "data/train")
    shutil.rmtree(made / "drawn")
    options = as_words({name: SMALL[name] for name in ("use_gpu", "num_workers", "visdom_port")})
    said = run(made, "main.py", "train", "--dry-run", "--image-size=64", *options)
    assert "14 rose, 14 tulip" in said
    said = run(made, "main.py", "help")
    assert "--dataset=Flowers " in said and "  train" in said and "  board" not in said
    assert git(made, "status", "--porcelain") == []


def test_without_classes_the_pictures_tell_them(tmp_path):
    made = make(tmp_path / "a b" / "my birds")
    assert '\n    dataset: str = "Pictures"  # ' in (made / "config.py").read_text()
    assert "dogcat" not in (made / "data/__init__.py").read_text()
    assert not (made / "data/dogcat.py").exists() and not (made / "data/my birds.py").exists()
    assert git(made, "log", "--format=%s") == ["Start the project"]


def test_many_classes_and_another_name(tmp_path):
    names = [f"kind {number}" for number in range(30)]
    made = make(tmp_path / "17", classes=",".join(names), name="Many", without="all")
    space = {}
    code = (made / "data/many.py").read_text().replace("from .pictures import", "from data import")
    exec(code, space)
    assert space["Many"].classes == tuple(names)
    run(made, "-m", "ruff", "format", "--check", "data")
    assert not [file for files, _ in TABLE.values() for file in files if (made / file).exists()]


def test_without_git_the_same_files_are_there(made, tmp_path, monkeypatch, capsys):
    folders = ("docs/", "models/", "tests/", "utils/")
    files = {name for name in git(made, "ls-files") if name.startswith(folders)}
    files |= {"main.py", "Makefile", ".gitignore", "checkpoints/.gitignore", "data/flowers.py"}
    monkeypatch.setenv("PATH", str(tmp_path))
    other = make(tmp_path / "flowers", classes="rose,tulip", without="board,compare")
    assert "without a git history, for git is not installed" in capsys.readouterr().out
    assert not (other / ".git").exists() and files <= files_of(other)
    more = files_of(other) - files
    assert not [name for name in more if re.match(r"\.venv|\.\w+_cache|data/.*/|.*\.pyc", name)]
    assert {name for name in more if name.startswith("checkpoints/")} == set()


def test_an_author_whom_git_does_not_know_and_a_hook_that_leads_elsewhere(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "--quiet", tmp_path / "other"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    made = make(tmp_path / "made", without="all")
    monkeypatch.delenv("GIT_DIR")
    assert git(made, "log", "--format=%an %ae") == ["nobody nobody@localhost"]
    assert git(tmp_path / "other", "count-objects") == ["0 objects, 0 kilobytes"]


def test_a_failure_leaves_no_folder_and_a_full_folder_stays_as_it_was(tmp_path, monkeypatch):
    (tmp_path / ".made.partial").mkdir()  # of a command that was killed
    with monkeypatch.context() as patched:
        patched.setattr(new, "start_history", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(tmp_path / "made")
    assert os.listdir(tmp_path) == []
    (tmp_path / "made").mkdir()
    make(tmp_path / "made")  # an empty folder is taken
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match=r"made is there already: name a new folder$"):
        make(tmp_path / "made")
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "new takes one folder: python main.py new ../flowers"),
        (["one", "two"], "new takes one folder"),
        (["."], " is there already: name a new folder"),
        (["own", "--without=bord"], "there is no part bord; did you mean board?"),
        (["own", "--without=board,all,x"], "there is no part x; choose from: "),
        (["own", "--classes=rose"], "--classes=rose: give two names or more"),
        (["own", "--classes=rose,Rose"], "all different"),
        (["own", "--classes=rose,a/b"], "'a/b' cannot be a part of a file's name"),
        (["own", "--classes=rose,tulip", "--name=flowers"], "'flowers' cannot be the name"),
        (["17", "--classes=rose,tulip"], "'17' cannot be the name of a class: give one, like"),
        (["pictures", "--classes=rose,tulip"], "data/ has Pictures already: give another name"),
        (["split", "--classes=rose,tulip"], "data/ has Split already"),
        (["own", "--name=Own"], "give both"),
    ],
)
def test_wrong_usage_is_one_line_before_torch_is_loaded(words, says, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')")
    said = run(tmp_path, PROJECT / "main.py", "new", *words, code=2, PYTHONPATH=str(tmp_path))
    assert says in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == ["torch.py"]
