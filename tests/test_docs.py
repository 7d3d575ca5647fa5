"""README.md and docs/: what they tell a reader to type is accepted and runs, what they name exists.

The pages use names that a reader replaces by his own: RUN, my_photos. The fixture `place` is a copy
of the project in which each of these names exists, and the classes of docs/adapting.md, too. A `…`
at the end of a command means that more of the same can follow.

What the pages say of a removed part is left out: of files that stand in the table of parts in
docs/adapting.md and are gone, and of the commands in them.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from config import COMMANDS, DefaultConfig
from tests.drawings import draw_set
from tests.helpers import PROJECT, SMALL, posix_only
from utils import commands, options
from utils.options import check_usage, options_of, split_arguments

ADAPTING = (PROJECT / "docs/adapting.md").read_text(encoding="utf-8")
PARTS = {  # name: its files, its lines in main.py
    name: (re.findall(r"`(.+?)`", files), re.findall(r"`(.+?)`", lines))
    for name, files, lines in re.findall(
        r"^\| `(\w+)`.* \| (`.+`) \| (.*)\|$",
        ADAPTING.partition("\n## What you do not need\n")[2],
        re.M,
    )
}
PAGES = {
    path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*PROJECT.glob("README*.md"), *sorted((PROJECT / "docs").glob("*.md"))]
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)  # its language and its lines
CODE = re.compile(r"`([^`\n]+)`")

# Where the pictures of `place` are.
PATHS = {"train_data_root": "data/demo/train", "test_data_root": "data/demo/test1"}

# The examples that no test runs.
NOT_RUN = (
    *("make", "pip", "PIP_", "python main.py prepare --source=oxford-pets"),  # need a network
    "docker",
    "torchrun",  # see tests/distributed
    "python -m tests.distributed",
    "python main.py train --train-data-root=data/oxford-pets",  # the same with my_photos does run
    "python main.py train --model=torchvision/resnet18",  # downloads
    *("tensorboard", "python main.py board"),  # servers, which go on until they are stopped
    *("python main.py check", "python -m tests.crash"),  # take long, and have tests of their own
    "python main.py new",  # writes a project beside this one, and has tests of its own
    "python main.py sweep",
    "touch /tmp/debug",  # would stop other runs on this machine
)

GONE = [path for files, _ in PARTS.values() for path in files if not (PROJECT / path).exists()]
GONE_COMMANDS = [Path(path).stem for path in GONE if Path(path).match("utils/commands/*.py")]


def is_gone(path: str) -> bool:
    """Return whether a path belongs to a part that was removed."""
    return any(path == gone or path.startswith(f"{gone}/") for gone in GONE)


def uses_what_is_gone(code: str) -> bool:
    """Return whether a command line, or a Python program, calls a command that was removed."""
    return any(re.search(rf"(^|main\.py |help |import ){name}\b", code) for name in GONE_COMMANDS)


def short_codes(text: str) -> list[str]:
    """List what stands in single backticks."""
    return CODE.findall(BLOCK.sub("", text))


def shell_lines(text: str) -> list[str]:
    """List the command lines in the blocks of a page."""
    blocks = [code for language, code in BLOCK.findall(text) if language in ("", "bash")]
    lines = [line for code in blocks for line in code.replace("\\\n", " ").splitlines()]
    return [line.removesuffix(" …") for line in lines if line.strip()]


def programs(text: str) -> list[str]:
    """List the Python of a page that can be run: not the classes, whose first line is a path."""
    blocks = [code for language, code in BLOCK.findall(text) if language == "python"]
    blocks = [code for code in blocks if not re.match(r"# \S+\.py\n", code)]
    return [*blocks, *(code for code in short_codes(text) if code.startswith("from main "))]


def typed_commands() -> list[str]:
    """List what follows `python main.py` on all pages, also where these two words are left out."""
    found = set()
    for text in PAGES.values():
        for code in [*short_codes(text), *shell_lines(text)]:
            found |= {*re.findall(r"python main\.py ([^|;&>#]+)", code)}
            found |= {code} if re.match(rf"({'|'.join(COMMANDS)}) --", code) else set()
    found = {command.strip().removesuffix(" …") for command in found}
    return sorted(command for command in found if not uses_what_is_gone(command))


def run(code: str, place: Path) -> str:
    """Run a command line in the shell, where `python` is this Python; return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        code, shell=True, cwd=place, env=env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def copy_code(folder: Path) -> None:
    """Copy what the commands need."""
    for pattern in ("*.py", "data/*.py", "models/*.py", "utils/**/*.*"):
        for path in PROJECT.glob(pattern):
            copy = folder / path.relative_to(PROJECT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def import_line(path: str) -> str:
    """Return the line of docs/adapting.md that imports the class in this file."""
    (line,) = re.findall(rf"`(from \.{Path(path).stem} import \w+)`", ADAPTING)
    return f"{line}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project, with small defaults; add the classes of the page, pictures and a run."""
    place = tmp_path_factory.mktemp("place")
    copy_code(place)
    config = (place / "config.py").read_text(encoding="utf-8")
    for name, value in {**SMALL, **PATHS, "max_epoch": 1}.items():
        config, count = re.subn(rf"(\n    {name}: .+? = )\S+(.*)", rf"\g<1>{value!r}\2", config)
        assert count == 1
    (place / "config.py").write_text(config, encoding="utf-8")
    for path, code in re.findall(r"^```python\n# (\S+\.py)\n(.+?)^```$", ADAPTING, re.M | re.S):
        (place / path).write_text(code, encoding="utf-8")
        with (place / path).with_name("__init__.py").open("a", encoding="utf-8") as file:
            file.write(import_line(path))
    draw_set(place / "data/demo")
    for name in ("data/oxford-pets/train", "my_photos", "held_out", "colors"):
        shutil.copytree(place / "data/demo/train", place / name)
    for name in {*re.findall(r"\bmy_photos/([\w.]+\.jpg)", "".join(PAGES.values()))}:
        shutil.copy(place / "data/demo/test1/1.jpg", place / "my_photos" / name)
    draw_set(place / "flowers", kinds=("rose", "tulip"), flat=True)
    paths = [path.relative_to(place / "colors") for path in place.glob("colors/*/*.jpg")]
    rows = [f"{path.as_posix()},{n % 2},{n // 2 % 2},1" for n, path in enumerate(paths)]
    (place / "colors/labels.csv").write_text("\n".join(["path,red,green,blue", *rows]))
    shutil.copytree(place / "data/demo/test1", place / "unknown_photos")
    (place / "FOLDER").mkdir()
    run("python main.py train", place)
    (folder,) = (place / "checkpoints").iterdir()
    shutil.copytree(folder, place / "RUN")
    return place


@pytest.mark.parametrize("command", typed_commands())
def test_a_command_is_accepted(command, place, monkeypatch, capsys):
    for name in commands.names():  # before the next lines: `new` copies the real project
        importlib.import_module(f"utils.commands.{name}")
    monkeypatch.chdir(place)
    monkeypatch.setattr(options, "PROJECT", place)  # it has the classes of docs/adapting.md
    for name, value in PATHS.items():
        monkeypatch.setattr(DefaultConfig, name, value)
    try:
        check_usage(DefaultConfig, COMMANDS, shlex.split(command))
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_an_option_exists_and_takes_the_value(page, place, monkeypatch):
    monkeypatch.setattr(options, "PROJECT", place)
    classes = [DefaultConfig, *(options_of(name) for name in commands.names())]
    for code in short_codes(PAGES[page]):
        given = split_arguments(["train", *shlex.split(code)])[1] if code[:2] == "--" else {}
        for name, value in given.items():
            owners = [owner for owner in classes if name in owner.hints()]
            assert owners or GONE_COMMANDS, f"{code}: there is no option --{name}"
            if owners and value is not True:
                owners[0](**{name: value})


@pytest.mark.parametrize("page", PAGES)
def test_a_target_of_make_exists(page):
    targets = re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.M)
    codes = [*short_codes(PAGES[page]), *shell_lines(PAGES[page])]
    assert {code.split()[1] for code in codes if code.startswith("make ")} <= {*targets}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_there_or_gone_with_all_its_files_and_lines(part):
    files, lines = PARTS[part]
    files = [file for file in files if not file.startswith("tests/")]  # tests may go by themselves
    main = (PROJECT / "main.py").read_text(encoding="utf-8").splitlines()
    found = [(PROJECT / file).exists() for file in files] + [line in main for line in lines]
    assert all(found) or not any(found), [*zip([*files, *lines], found, strict=True)]


def anchors(path: Path) -> list[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)", BLOCK.sub("", path.read_text(encoding="utf-8")), re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", PAGES[page])):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            path = (PROJECT / page).parent / name if name else PROJECT / page
            gone = is_gone(Path(os.path.normpath(path)).relative_to(PROJECT).as_posix())
            assert path.exists() or gone, link
            assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES)
def test_a_file_of_the_project_exists(page, place):
    for code in short_codes(PAGES[page]):
        if re.fullmatch(r"(data|docs|models|tests|utils)/[\w./-]+|\w+\.(py|toml|lock)", code):
            found = (PROJECT / code).exists() or (place / code).exists()
            found |= code in (DefaultConfig.train_data_root, DefaultConfig.test_data_root)
            assert found or is_gone(code), f"{page}: {code}"


@pytest.fixture(scope="module")
def done() -> set[str]:
    """Return the examples that have run, so that one that is on two pages runs once."""
    return set()


@posix_only
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_run(page, place, done):
    lines = [line for line in shell_lines(PAGES[page]) if not line.startswith(NOT_RUN)]
    lines += [f"python -c {shlex.quote(code)}" for code in programs(PAGES[page])]
    if any(uses_what_is_gone(line) for line in lines):
        pytest.skip("it has an example of a removed command")
    for line in lines:
        if line not in done:
            run(line, place)
            done.add(line)


def test_the_readme_is_short_and_names_the_three_files_to_read():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 120
    path = re.findall(r"^\d\. \[`(.+?)`\]", text, re.M)
    assert path == ["config.py", "main.py", "utils/engine.py"]


def facts(text: str) -> dict[str, Counter]:
    """Return what a translation must not change: commands, options, links, figures, structure."""
    prose = BLOCK.sub("", text)
    links = [link for link in re.findall(r"\]\(([^)]*)\)", prose) if not link.startswith("README")]
    words = CODE.sub("", re.sub(r"\]\([^)]*\)", "]", prose))  # without code and links
    return {
        "blocks": Counter(code for _, code in BLOCK.findall(text)),
        "codes": Counter(short_codes(text)),
        "links": Counter(links),
        "figures": Counter(re.findall(r"\d[\d.,]*\d|\d", words)),
        "structure": Counter(re.findall(r"^(?:#+ |\||- |\d\. |!)", prose, re.M)),
    }


@pytest.mark.skipif("README.zh-CN.md" not in PAGES, reason="the translation was removed")
def test_the_chinese_readme_has_the_same_commands_options_and_figures():
    one, other = facts(PAGES["README.md"]), facts(PAGES["README.zh-CN.md"])
    for kind, found in one.items():
        assert other[kind] == found, kind
