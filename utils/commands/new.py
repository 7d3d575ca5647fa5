"""Start a project of your own: a copy with your classes, without the parts that you do not need."""

import ast
import keyword
import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from string import Template
from typing import NamedTuple

from config import COMMANDS, DefaultConfig
from utils.options import PROJECT, UsageError, nearest, syntax_tree

# What no new project gets, as it is about this one: parts, files, targets of make, sections.
PARTS = ["new", "benchmarks", "tutorial"]
FILES = r"\.ci/.*|\.github/.*\.png|README.*\.md|\.dockerignore|Dockerfile|data/dogcat\.py"
FILES += r"|tests/test_(adapting|copies|dogcat)\.py"
TARGETS = ["demo", "data/demo", "bench", "test-copies"]
SECTIONS = "Start a project of your own|How many places|Docker"
# What is copied where no git tells which files belong to the project.
PATTERNS = ["[!.]*", ".gitignore", ".pre-commit-config.yaml", "checkpoints/.gitignore", "data/*.py"]
PATTERNS += [f"{folder}/**/*" for folder in (".github", "docs", "models", "tests", "utils")]
RESULTS = r".*\b__pycache__\b.*|result\.csv|compare\.html"

DATASET = '''\
"""The pictures of this project."""

from .pictures import Pictures


class {name}(Pictures):
    """Files named like CLASS.12.jpg have these classes; other layouts tell theirs."""

    classes = ({classes})
'''


class Options(DefaultConfig):
    """`new FOLDER` takes the folder of the new project."""

    takes_words = "folder"

    folder: tuple[str, ...] = ()  # a new or empty one; the word --folder may be left out
    classes: str | None = None  # like rose,tulip; None: the folders of your pictures tell them
    name: str | None = None  # of the class in data/; None: that of the folder, like Flowers
    without: str | None = None  # parts to leave out, like board,compare; or all

    def validate(self) -> None:
        make_plan(self)  # already here, so that wrong usage ends before torch is loaded


class Plan(NamedTuple):
    folder: Path
    files: list[str]  # that are left out
    lines: list[str]  # of main.py that are left out
    dataset: str
    classes: list[str]


def make_plan(opt: Options) -> Plan:
    """Return what the options ask for. Raises UsageError if that is impossible."""
    if len(opt.folder) != 1:
        raise UsageError("new takes one folder: python main.py new ../flowers")
    folder = Path(opt.folder[0]).expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is there already: name a new folder")
    table = table_of_parts()
    parts = re.findall(r"[^,\s]+", (opt.without or "").replace("-", "_"))
    for part in parts:
        if part not in [*table, "all"]:
            raise UsageError(f"--without: there is no part {part}; {nearest(part, [*table])}")
    gone = [table[part] for part in table if part in [*PARTS, *parts] or "all" in parts]
    files = [file for part_files, _ in gone for file in part_files]
    lines = [line for _, part_lines in gone for line in part_lines]
    if not opt.classes:
        if opt.name:
            raise UsageError("--name is the name of the class that has --classes: give both")
        return Plan(folder, files, lines, "Pictures", [])
    classes = [name.strip() for name in opt.classes.split(",")]
    if len({name.lower() for name in classes}) < max(2, len(classes)):
        raise UsageError(f"--classes={opt.classes}: give two names or more, all different")
    if wrong := [name for name in classes if not re.fullmatch(r"\w[\w .+-]*", name)]:
        raise UsageError(f"--classes: {wrong[0]!r} cannot be a part of a file's name")
    words = re.findall(r"[^\W_]+", folder.name)
    name = opt.name or "".join(word[0].upper() + word[1:] for word in words)
    if not (name.isidentifier() and name[0].isupper()) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot be the name of a class: give one, like --name=Flowers")
    imports = (PROJECT / "data/__init__.py").read_text(encoding="utf-8")
    imported = re.search(rf"^from .* import .*\b{name}\b", imports, re.M)
    if imported or (PROJECT / f"data/{name.lower()}.py").exists():
        raise UsageError(f"data/ has {name} already: give another name, like --name=My{name}")
    return Plan(folder, files, lines, name, classes)


def table_of_parts() -> dict[str, list[list[str]]]:
    """Return {part: [its files, its lines in main.py]}, from the page that tells people."""
    page = PROJECT / "docs/adapting.md"
    if not page.exists():
        raise UsageError(f"{page} is gone: its table says which files each part has")
    table = page.read_text(encoding="utf-8").partition("\n## What you do not need\n")[2]
    rows = re.findall(r"^\| `(\w+)`.* \| (`.+`) \| (.*)\|$", table, re.M)
    return {part: [re.findall(r"`(.+?)`", cell) for cell in cells] for part, *cells in rows}


def run(opt: Options) -> Path:
    """Write the new project and return its folder, which gets its name when all is done."""
    plan = make_plan(opt)
    work = plan.folder.with_name(f".{plan.folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)  # of a command that was killed
    try:
        copy_files(plan, work)
        edit_files(plan, work)
        write_files(plan, work)
        told = start_history(work)
        if plan.folder.exists():
            plan.folder.rmdir()  # it is empty, and Windows cannot rename to a name that exists
        work.rename(plan.folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    print(f"{plan.folder} is ready, {told}; next: make test, in that folder")
    return plan.folder


def copy_files(plan: Plan, work: Path) -> None:
    """Copy the files that git knows, or else those of the usual folders; none that is left out."""
    try:
        names = git(PROJECT, "ls-files", "-z").split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not any(names):  # no git, no repository, or one that knows nothing of this folder
        paths = [path for pattern in PATTERNS for path in PROJECT.glob(pattern)]
        names = [path.relative_to(PROJECT).as_posix() for path in paths]
        names = [name for name in names if not re.fullmatch(RESULTS, name)]
    for name in names:
        gone = {name, *map(str, PurePosixPath(name).parents)} & {*plan.files}
        if (PROJECT / name).is_file() and not gone and not re.fullmatch(FILES, name):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, work / name)


def edit_files(plan: Plan, work: Path) -> None:
    """Name the data set where it is named; take out what is about a part that is left out."""
    imported = f"from .{plan.dataset.lower()} import {plan.dataset}\n" if plan.classes else ""
    dataset = f'    dataset: str = "{plan.dataset}"  # a class of data/'
    lines = "|".join(map(re.escape, plan.lines))
    pages = [f"docs/{path.name}" for path in work.glob("docs/*.md")]
    edits = [
        ("data/__init__.py", r"from \.dogcat import .*\n", imported),
        ("config.py", r"    dataset: .*", dataset),
        ("config.py", r'(.* = )"data/demo/(train|test)1?"', r'\1"data/\2"'),
        ("main.py", rf"({lines}).*\n", ""),
        *(("Makefile", rf"{target}:.*\n(\t.*\n)*\n", "") for target in TARGETS),
        *(("Makefile", rf"(\.PHONY:.*) {target}\b", r"\1") for target in TARGETS),
        ("pyproject.toml", r"(addopts = .*) -m 'not copies'", r"\1"),
        ("pyproject.toml", r"markers = .*\n", ""),
        *((page, rf"## ({SECTIONS})\n(.*\n)*?(?=## |\Z)", "") for page in pages),
        *((page, r"!\[.*\n\n", "") for page in pages),  # pictures
        ("docs/notebook.md", r"\[`tutorial\.ipynb`\].*\n(.+\n)*\n", ""),
    ]
    for name, pattern, new in edits:
        if (path := work / name).exists():
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(f"^{pattern}", new, text, flags=re.M), encoding="utf-8")


def write_files(plan: Plan, work: Path) -> None:
    """Write the file of the data set, and README.md with the commands and pages that stay."""
    layout = "in a folder for each class"
    if plan.classes:
        layout += f", or named like `{plan.classes[0].lower()}.12.jpg`"
        names = ", ".join(f'"{name}"' for name in plan.classes)
        if len(names) > 84:  # too long for a line: one each, as ruff has it
            names = "".join(f'\n        "{name}",' for name in plan.classes) + "\n    "
        text = DATASET.format(name=plan.dataset, classes=names)
        (work / f"data/{plan.dataset.lower()}.py").write_text(text, encoding="utf-8")
    texts = {name: text for name, (text, _) in COMMANDS.items()}
    main = (work / "main.py").read_text(encoding="utf-8")
    for name in re.findall(r"^(\w+) = commands\.get", main, re.M):
        docstring = ast.get_docstring(syntax_tree(f"utils/commands/{name}.py"))
        texts[name] = (docstring or "").partition("\n")[0]
    pages = ["[Licence](LICENSE)"]
    for page in sorted(work.glob("docs/*.md")):
        heading = page.read_text(encoding="utf-8").splitlines()[0]
        pages.append(f"[{heading.removeprefix('# ')}](docs/{page.name})")
    readme = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")).substitute(
        title=plan.folder.name,
        layout=layout,
        rows="\n".join(f"| `python main.py {name}` | {text} |" for name, text in texts.items()),
        pages="\n".join(f"- {page}" for page in pages),
    )
    (work / "README.md").write_text(readme, encoding="utf-8")


def start_history(folder: Path) -> str:
    """Make the folder a git repository with one commit; return in words how that went."""
    try:
        git(folder, "init", "--quiet")
        git(folder, "add", "--all", "--force")  # whatever the user's own ignore file says
        author = {"user.name": "nobody", "user.email": "nobody@localhost"}  # if git knows none
        for key in author:
            author[key] = git(folder, "config", "--default", author[key], "--get", key)
        options = [word for key, value in author.items() for word in ("-c", f"{key}={value}")]
        git(folder, *options, "commit", "--quiet", "--no-verify", "--message=Start the project")
    except FileNotFoundError:
        return "without a git history, for git is not installed"
    except subprocess.CalledProcessError as error:
        return f"without a commit ({os.fsdecode(error.stderr).strip().rpartition(chr(10))[2]})"
    return f"with one commit, by {author['user.name']}"


def git(folder: Path, *words: str) -> str:
    """Return what git prints. Raises FileNotFoundError without git, CalledProcessError if it fails.

    A hook has variables that would lead git to the repository of the hook.
    """
    of_a_hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
    env = {name: value for name, value in os.environ.items() if name not in of_a_hook}
    done = subprocess.run(["git", *words], cwd=folder, env=env, capture_output=True, check=True)
    return os.fsdecode(done.stdout).strip()
