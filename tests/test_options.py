"""What a person types after `python main.py`, and what happens when it is wrong."""

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import fire
import pytest
from fire.decorators import SetParseFn

from config import COMMANDS, DefaultConfig
from utils import commands
from utils.options import (
    NOT_SAVED,
    SYNONYMS,
    UsageError,
    check_usage,
    find_class,
    flag,
    help_text,
    imported_names,
    metric_names,
)

PROJECT = Path(__file__).resolve().parent.parent
OPTIONS = list(get_type_hints(DefaultConfig))
ALL_COMMANDS = [*COMMANDS, *commands.names()]
BOOK = (
    *("env", "model", "train_data_root", "test_data_root", "load_model_path", "batch_size"),
    *("use_gpu", "num_workers", "print_freq", "debug_file", "result_file", "max_epoch"),
    *("lr", "lr_decay", "weight_decay"),
)
HEAVY = ("torch", "torchvision", "numpy", "fire", "visdom", "matplotlib", "PIL", "jinja2")

# A command that can be removed, as a user would write it.
SAY = '''"""Say a word as often as you like.

This paragraph is not for the list of commands.
"""

from config import DefaultConfig
from utils.options import InputPath, PositiveInt


class Options(DefaultConfig):
    required_path = "book"

    # Words
    book: InputPath = "book.txt"  # file with the word
    how_often: PositiveInt = 2  # times that the word is said


def run(opt: Options) -> None:
    print("word " * opt.how_often + opt.env)
'''


@pytest.fixture(scope="session")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules with the names of the slow ones, which end the program when they are imported."""
    folder = tmp_path_factory.mktemp("traps")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was loaded')\n")
    return folder


class Shell:
    """`python main.py …` of one project in an empty folder, where loading torch is noticed."""

    def __init__(self, project: Path, folder: Path, traps: Path | None) -> None:
        self.project, self.folder = project, folder
        self.env = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(traps or "")}

    def __call__(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(self.project / "main.py"), *words],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )


@pytest.fixture
def shell(tmp_path: Path, traps: Path) -> Shell:
    return Shell(PROJECT, tmp_path, traps)


@pytest.fixture
def copied(tmp_path: Path, traps: Path) -> Shell:
    """A copy of the project with the command `say` in place of its own removable commands."""
    project, folder = tmp_path / "project", tmp_path / "empty"
    folder.mkdir()
    for pattern in ("*.py", "*.toml", "data/*.py", "models/*.py", "utils/*.py", "utils/*/*.py"):
        for path in PROJECT.glob(pattern):
            target = project / path.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for name in commands.names():
        (project / f"utils/commands/{name}.py").unlink()
    (project / "utils/commands/say.py").write_text(SAY)
    return Shell(project, folder, traps)


def read(*words: str) -> DefaultConfig:
    """Read options as the command line does: validated, normalised, and read by a command."""
    command, *options = check_usage(DefaultConfig, COMMANDS, ["val", *words])
    assert command == "val"
    return DefaultConfig(**dict(word[2:].split("=", 1) for word in options))


def one_edit_away(word: str) -> set[str]:
    """Drop, double or swap one letter."""
    dropped = {word[:i] + word[i + 1 :] for i in range(len(word))}
    doubled = {word[:i] + word[i] + word[i:] for i in range(len(word))}
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return (dropped | doubled | swapped) - {word, ""}


# Values as a person writes them.


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--use-gpu=false"], "use_gpu", False),
        (["--use_gpu=False"], "use_gpu", False),
        (["--use-gpu=no"], "use_gpu", False),
        (["--use-gpu=0"], "use_gpu", False),
        (["--use-gpu", "off"], "use_gpu", False),
        (["--use-gpu=TRUE"], "use_gpu", True),
        (["--balanced"], "balanced", True),
        (["--balanced=yes"], "balanced", True),
        (["--balanced=1"], "balanced", True),
        (["--env=701"], "env", "701"),
        (["--env=1e3"], "env", "1e3"),
        (["--env", "007"], "env", "007"),
        (["--env=true"], "env", "true"),
        (["--env=None"], "env", "None"),
        (["--env=[1,2]"], "env", "[1,2]"),
        (["--env=a=b"], "env", "a=b"),
        (["--env=--lr"], "env", "--lr"),
        (["--env=Hündin 1"], "env", "Hündin 1"),
        (["--load-model-path=None"], "load_model_path", None),
        (["--load-model-path=none"], "load_model_path", None),
        (["--debug-file=null"], "debug_file", None),
        (["--num-workers=None"], "num_workers", None),
        (["--num-workers=0"], "num_workers", 0),
        (["--clip-norm=none"], "clip_norm", None),
        (["--clip-norm=2"], "clip_norm", 2.0),
        (["--lr", "1e-3"], "lr", 0.001),
        (["--lr=.5"], "lr", 0.5),
        (["--lr=1"], "lr", 1.0),
        (["--max-epoch=1e1"], "max_epoch", 10),
        (["--max_epoch=10.0"], "max_epoch", 10),
        (["--max-epoch", "+3"], "max_epoch", 3),
        (["--seed=123456789012345678901234567890"], "seed", 123456789012345678901234567890),
        (["--weight-decay=0"], "weight_decay", 0.0),
        (["--weight_decay=1"], "weight_decay", 1.0),
        (["--image-size=64"], "image_size", 64),
        (["--schedule=plateau"], "schedule", "plateau"),
        (["--model=ResNet34"], "model", "ResNet34"),
    ],
)
def test_a_value_is_read_as_it_is_meant(words, name, value):
    found = getattr(read(*words), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "word",
    [
        "--lr=fast",
        "--lr=0",
        "--lr=-0.1",
        "--lr=nan",
        "--lr=inf",
        "--lr=-inf",
        "--lr=1e999",
        "--lr=None",
        "--lr=True",
        "--lr=0,1",
        "--lr",
        "--max-epoch=0",
        "--max-epoch=1.5",
        "--max-epoch=nan",
        "--max-epoch=inf",
        "--max-epoch=1e999",
        "--max-epoch=ten",
        "--max-epoch=true",
        "--max-epoch=None",
        "--batch-size=0",
        "--num-workers=-1",
        "--num-workers=auto",
        "--seed=-1",
        "--weight-decay=-0.1",
        "--weight-decay=1.1",
        "--lr-decay=nan",
        "--dropout=2",
        "--focal-gamma=-1",
        "--focal-gamma=inf",
        "--image-size=63",
        "--image-size=1025",
        "--image-size=64.5",
        "--use-gpu=maybe",
        "--use-gpu=2",
        "--use-gpu=None",
        "--checkpoint-root=  ",
        "--schedule=cosine",
        "--schedule=Plateau",
        "--precision=16",
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_name(word, capsys):
    name, _, value = word.partition("=")
    with pytest.raises(SystemExit) as end:
        read(word)
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith(f"{name} takes ") and line.endswith(f"not {value or 'True'!r}")


def test_an_unknown_model_or_data_set_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"--model=Resnet34 .*did you mean ResNet34"):
        DefaultConfig(model="Resnet34")
    with pytest.raises(UsageError, match=r"--dataset=Loader is not in data/; "):
        DefaultConfig(dataset="Loader")
    with pytest.raises(UsageError, match=r"--dataset=Picture .*did you mean Pictures"):
        DefaultConfig(dataset="Picture")


def test_keywords_take_typed_values_and_text_alike():
    opt = DefaultConfig(lr=0.01, max_epoch=3, use_gpu=False, load_model_path=None, env="e")
    assert (opt.lr, opt.max_epoch, opt.use_gpu, opt.load_model_path) == (0.01, 3, False, None)
    assert DefaultConfig(lr="1e-3").lr == 0.001
    assert DefaultConfig(lr=1).lr == 1.0 and isinstance(DefaultConfig(lr=1).lr, float)
    assert DefaultConfig(max_epoch=2.0).max_epoch == 2
    assert DefaultConfig(checkpoint_root=Path("a") / "b").checkpoint_root == str(Path("a", "b"))
    assert DefaultConfig(**{"batch-size": 8}).batch_size == 8


@pytest.mark.parametrize(
    "given",
    [
        *({"lr": True}, {"lr": float("nan")}, {"lr": [0.1]}, {"max_epoch": False}),
        *({"max_epoch": 2.5}, {"env": True}, {"env": None}, {"model": None}),
        *({"use_gpu": 2}, {"use_gpu": None}),
    ],
    ids=repr,
)
def test_keywords_of_the_wrong_type_are_refused(given):
    with pytest.raises(UsageError):
        DefaultConfig(**given)


def test_one_call_leaves_nothing_behind_that_changes_the_next():
    before = DefaultConfig().state_dict()
    opt = DefaultConfig(lr=0.5, env="other", use_gpu=False)
    opt.lr *= 2
    opt.state_dict()["env"] = "changed"
    assert opt.env == "other"
    assert DefaultConfig().state_dict() == before
    assert before["lr"] != 0.5 and DefaultConfig.lr == before["lr"]


# Names.


def test_the_options_of_the_book_are_all_there():
    assert len(BOOK) == 15 and set(BOOK) <= set(OPTIONS)


def test_every_misspelt_option_is_refused_and_nearly_always_the_right_one_is_suggested():
    suggested, missed = 0, []
    for name in OPTIONS:
        for wrong in one_edit_away(name) - set(OPTIONS):
            with pytest.raises(UsageError) as refusal:
                DefaultConfig(**{wrong: "1"})
            if f"did you mean {flag(name)}?" in str(refusal.value):
                suggested += 1
            else:
                missed.append((name, wrong, str(refusal.value)))
    assert suggested + len(missed) > 10 * len(OPTIONS)
    assert suggested >= 0.95 * (suggested + len(missed)), missed


@pytest.mark.parametrize(
    ("elsewhere", "ours"),
    [
        *(("learning_rate", "lr"), ("learing-rate", "lr"), ("lerning_rate", "lr")),
        *(("epochs", "max_epoch"), ("epohcs", "max_epoch"), ("num_epochs", "max_epoch")),
        *(("bs", "batch_size"), ("batchsize", "batch_size"), ("wd", "weight_decay")),
        *(("arch", "model"), ("device", "use_gpu"), ("gpu", "use_gpu"), ("amp", "precision")),
        *(("fp16", "precision"), ("metric", "best_metric"), ("workers", "num_workers")),
        *(("data", "train_data_root"), ("data_dir", "train_data_root")),
        *(("size", "image_size"), ("img_size", "image_size"), ("resume_from", "resume")),
        *(("checkpoint", "load_model_path"), ("chekpoint", "load_model_path")),
        *(("ckpt", "load_model_path"), ("pretrained_path", "load_model_path")),
        *(("output_dir", "checkpoint_root"), ("grad_clip", "clip_norm")),
        # These are in no list of names: the help says them.
        *(("highest_learning", "lr"), ("val_metric", "best_metric"), ("visdom_environment", "env")),
        *(("smoothing", "label_smoothing"), ("gamma", "focal_gamma"), ("port", "visdom_port")),
    ],
)
def test_the_usual_name_elsewhere_leads_to_ours(elsewhere, ours):
    with pytest.raises(UsageError, match=f"; did you mean {flag(ours)}\\?$"):
        DefaultConfig(**{elsewhere: "1"})


@pytest.mark.parametrize("word", ["xyzzy", "momentum", "solver", "loss", "verbose", "rank", "q"])
def test_a_name_like_none_of_ours_gets_no_silly_suggestion(word):
    with pytest.raises(UsageError, match=f"^there is no option --{word}; python main.py help "):
        DefaultConfig(**{word: "1"})


def test_every_name_from_elsewhere_leads_to_an_option_and_is_none():
    pairs = [
        entry.split(": ") for line in SYNONYMS.strip().splitlines() for entry in line.split(";")
    ]
    theirs = [word for _, words in pairs for word in words.split()]
    assert {ours.strip() for ours, _ in pairs} <= set(OPTIONS)
    assert len(theirs) == len(set(theirs)) and not set(theirs) & set(OPTIONS)


def test_every_misspelt_command_is_refused_and_the_right_one_suggested(capsys):
    for name in ALL_COMMANDS:
        for wrong in one_edit_away(name) - set(ALL_COMMANDS):
            with pytest.raises(SystemExit) as end:
                check_usage(DefaultConfig, COMMANDS, [wrong])
            assert end.value.code == 2
            assert f"did you mean {name}?" in capsys.readouterr().err, wrong


def test_each_option_is_one_line_with_a_comment_and_a_row_of_help():
    source = inspect.getsource(DefaultConfig)
    rows = help_text(DefaultConfig, COMMANDS).splitlines()
    for name in OPTIONS:
        lines = re.findall(rf"^ {{4}}{name}: .+= .+  # \S.+$", source, re.M)
        assert len(lines) == 1, f"{name} is not one line with a comment"
        meaning = lines[0].split("  # ")[1]
        written = f"{flag(name)}={getattr(DefaultConfig, name)} "
        row = [row for row in rows if row.strip().startswith(written)]
        assert len(row) == 1 and meaning in row[0], f"{name} has no row of help"


# What a run keeps of its options, and what --resume takes.


def test_a_run_keeps_every_option_but_those_that_hold_for_one_command():
    opt = DefaultConfig(lr=0.1, resume=True, **{"allow-changes": True})
    assert opt.given == {"lr", "resume", "allow_changes"}
    assert set(vars(opt)) == set(OPTIONS)
    assert opt.state_dict() == {
        name: getattr(opt, name) for name in OPTIONS if name not in NOT_SAVED
    }
    assert set(opt.result_options()) == set(opt.state_dict()) - DefaultConfig.changeable_on_resume
    opt.lr, opt.note = 0.5, "made at the debugger's prompt"
    assert opt.state_dict()["lr"] == 0.5 and "note" not in opt.state_dict()
    assert "resume" not in opt.result_options() and "allow_changes" not in opt.result_options()


def test_resuming_takes_the_saved_options_and_then_the_given_ones():
    saved = DefaultConfig(lr=0.1, image_size=64, env="first", max_epoch=3).state_dict()
    opt = DefaultConfig(resume="folder", env="second", max_epoch=4, num_workers=0)
    resumed = opt.resumed(saved)
    assert resumed.state_dict() == saved | {"env": "second", "max_epoch": 4, "num_workers": 0}
    assert resumed.given == opt.given and resumed.resume == "folder"
    assert DefaultConfig(resume=True).resumed(saved).state_dict() == saved
    assert DefaultConfig(resume=True, lr="1e-1").resumed(saved).state_dict() == saved


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lr": 0.2}, r"^--lr=0\.2 \(the run has 0\.1\) would change the result"),
        ({"max_epoch": 2}, r"--max-epoch=2 \(the run has 3\)"),
        ({"model": "ResNet34", "seed": 1}, r"--model=ResNet34 .*--seed=1 \(the run has 0\)"),
        ({"best_metric": "loss"}, r"--best-metric=loss"),  # not in the file: the default was used
    ],
)
def test_resuming_refuses_what_changes_the_result_unless_it_is_allowed(given, says):
    saved = DefaultConfig(lr=0.1, max_epoch=3).state_dict()
    del saved["best_metric"]
    with pytest.raises(UsageError, match=says):
        DefaultConfig(resume=True, **given).resumed(saved)
    allowed = DefaultConfig(resume=True, allow_changes=True, **given).resumed(saved)
    assert {name: getattr(allowed, name) for name in given} == given
    # It was allowed once, not for ever: neither by what this run saves, nor by an older file.
    older = saved | {"allow_changes": True, "resume": True}
    for file in (allowed.state_dict(), older):
        with pytest.raises(UsageError, match=r"--lr=0\.3"):
            DefaultConfig(resume=True, lr=0.3).resumed(file)


def test_resuming_an_older_run_leaves_out_options_that_are_gone_and_adds_new_ones():
    saved = DefaultConfig(lr=0.1).state_dict() | {"use_tensor_cores": True, "momentum": None}
    del saved["best_metric"]
    resumed = DefaultConfig(resume=True).resumed(saved)
    assert resumed.lr == 0.1 and resumed.best_metric == DefaultConfig.best_metric
    assert set(vars(resumed)) == set(OPTIONS)


# Models, data sets and metrics are named, and read from the source.


def test_a_class_itself_can_be_given_and_its_name_is_saved():
    class Mine:
        pass

    class Stones:
        pass

    opt = DefaultConfig(model=Mine, dataset=Stones)
    assert opt.state_dict()["model"] == "Mine" and opt.dataset == "Stones"
    models, data = ModuleType("models"), ModuleType("data")
    assert find_class(models, "Mine") is Mine and find_class(data, "Stones") is Stones
    models.Other = type("Other", (), {})
    assert find_class(models, "Other") is models.Other
    assert DefaultConfig(**opt.state_dict()).model == "Mine"  # a second command of the notebook
    again = type("Mine", (), {})  # the cell is run again
    assert find_class(models, DefaultConfig(model=again).model) is again
    with pytest.raises(UsageError, match="--dataset=Mine is not in data/"):
        DefaultConfig(dataset="Mine")


def test_a_class_with_the_name_of_another_one_is_refused():
    with pytest.raises(UsageError, match="models/ has a class SqueezeNet already"):
        DefaultConfig(model=type("SqueezeNet", (), {}))
    ours = type("SqueezeNet", (), {"__module__": "models.squeezenet"})
    assert DefaultConfig(model=ours).model == "SqueezeNet"
    with pytest.raises(UsageError, match="--model=<function"):
        DefaultConfig(model=lambda: None)


def test_a_new_model_is_its_file_and_one_line(copied):
    path = copied.project / "models/__init__.py"
    path.write_text(path.read_text() + "from .mine import Mine\n")
    (copied.project / "models/mine.py").write_text('"""Mine."""\n\n\nclass Mine:\n    pass\n')
    assert "was loaded" in copied("val", "--model=Mine").stderr  # nothing is wrong with this
    assert "did you mean Mine?" in copied("val", "--model=Mien").stderr
    pytest.importorskip("ruff", reason="lint needs ruff")
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "models"]
        done = subprocess.run(command, cwd=copied.project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_new_metric_is_one_line(copied):
    path = copied.project / "utils/metrics.py"
    assert imported_names("models") and set(metric_names()) >= {"loss", "accuracy"}
    assert "did you mean loss?" in copied("val", "--best-metric=los").stderr
    line = next(line for line in path.read_text().splitlines() if line.startswith("METRICS"))
    new = line + '\n    "error": (lambda logits, labels: 1 - accuracy(logits, labels), min),'
    path.write_text(path.read_text().replace(line, new))
    assert "was loaded" in copied("val", "--best-metric=error").stderr
    refused = copied("val", "--best-metric=precision").stderr
    assert "--best-metric=precision is not in utils/metrics.py; " in refused


# Commands that can be removed.


def test_help_shows_each_other_command_and_its_own_options(shell):
    page = shell("help").stdout
    for name in commands.names():
        module = import_module(f"utils.commands.{name}")
        first_line = module.__doc__.splitlines()[0]
        assert re.search(rf"^ +{name} +{re.escape(first_line)}$", page, re.M)
        own = [option for option in get_type_hints(module.Options) if option not in OPTIONS]
        for words in (["help", name], [name, "--help"]):
            done = shell(*words)
            assert (done.returncode, done.stderr) == (0, "")
            title = f"Options of {name}" if own else f"{name} has no options of its own."
            assert first_line in done.stdout and title in done.stdout
            assert "All options that `python main.py help` shows" in done.stdout
            for option in own:
                default = re.escape(f"{flag(option)}={getattr(module.Options, option)} ")
                assert re.search(rf"^ +{default} *\S.+ \[.+\]$", done.stdout, re.M), option
                assert flag(option) + "=" not in page
        for option in own:
            with pytest.raises(UsageError, match=rf"{flag(option)} here; .* {name}\b"):
                DefaultConfig(**{option: "1"})


def test_a_command_of_its_own_file_has_help_options_and_a_required_path(copied):
    page = copied("help").stdout
    assert re.search(r"^  say +Say a word as often as you like\.$", page, re.M)
    assert "--how-often" not in page and "This paragraph" not in page
    for words in (["help", "say"], ["say", "--help"], ["say", "-h", "--how-often=3"]):
        page = copied(*words).stdout
        assert "Options of say\n\nWords\n  --book=book.txt" in page
        assert re.search(r"^  --how-often=2 +times .* \[a whole number from 1 up\]$", page, re.M)
        assert "--lr=" not in page
    for words, says in [
        (["say"], "book.txt does not exist; give the right path: --book=PATH"),
        (["say", "--book=nowhere"], "nowhere does not exist"),
        (["say", "--how-often=0"], "--how-often takes a whole number from 1 up, not '0'"),
        (["say", "--how-oftn=1"], "--how-oftn; did you mean --how-often?"),
        (["say", "--learning-rate=1"], "did you mean --lr?"),
        (["train", "--how-often=5"], "--how-often here; it belongs to the command say"),
        (["sya"], "did you mean say?"),
        (["help", "sya"], "did you mean say?"),
    ]:
        done = copied(*words)
        assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
        assert says in done.stderr
    assert not list(copied.folder.iterdir())


def test_a_command_of_its_own_file_runs_with_its_options_and_those_of_all(copied):
    path = copied.project / "main.py"
    before, main, after = path.read_text().rpartition('if __name__ == "__main__":')
    path.write_text(before + 'say = commands.get("say")\n\n' + main + after)
    (copied.folder / "book.txt").touch()
    copied.env["PYTHONPATH"] = ""
    done = copied("say", "--how-often=3", "--env=701")
    assert (done.returncode, done.stdout) == (0, "word word word 701\n"), done.stderr


def test_a_command_whose_file_is_deleted_is_unknown(copied):
    (copied.project / "utils/commands/say.py").unlink()
    assert "there is no command 'say'; " in copied("say").stderr
    assert "say" not in copied("help").stdout.partition("Data")[0].split()
    done = copied("train", "--how-often=5")
    assert done.returncode == 2 and "belongs to" not in done.stderr


# The command line.


@pytest.mark.parametrize(
    "words", [[], ["help"], ["--help"], ["-h"], ["train", "--help"], ["help", "val"]], ids=str
)
def test_help_lists_every_command_and_option_without_loading_torch(shell, words, tmp_path):
    done = shell(*words)
    assert (done.returncode, done.stderr) == (0, "")
    for name, (meaning, _) in COMMANDS.items():
        assert re.search(rf"^ +{name} +{re.escape(meaning)}$", done.stdout, re.M), name
    for name in OPTIONS:
        default = re.escape(f"{flag(name)}={getattr(DefaultConfig, name)}")
        assert re.search(rf"^ +{default} +\S.+ \[.+\]$", done.stdout, re.M), name
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "'trian'; did you mean train?"),
        (["Train"], "'Train'; did you mean train?"),
        (["xyzzy"], "'xyzzy'; choose from: "),
        (["--lr=0.1"], "there is no command ''; choose from: "),
        (["train", "--batchsize=4"], "--batchsize; did you mean --batch-size?"),
        (["train", "--lr=0.1", "--l-r=0.1"], "--l-r; did you mean --lr?"),
        (["val", "--no-use-gpu"], "did you mean --use-gpu?"),
        (["val", "--lr=fast"], "--lr takes a number above 0, not 'fast'"),
        (["val", "--lr"], "--lr takes a number above 0"),
        (["val", "--lr="], "--lr takes a number above 0, not ''"),
        (["val", "--env="], "--env takes text, not ''"),
        (["val", "--lr", "--balanced"], "--lr takes a number above 0"),
        (["val", "--lr=1", "--lr=2"], "--lr is given twice"),
        (["val", "--batch-size=1", "--batch_size=1"], "is given twice"),
        (["val", "more"], "cannot read 'more'"),
        (["val", "--lr=1", "more"], "cannot read 'more'"),
        (["val", "--lr", "1", "more"], "cannot read 'more'"),
        (["val", "-lr=1"], "cannot read '-lr=1'"),
        (["val", "-"], "cannot read '-'"),
        (["val", "--", "--trace"], "cannot read '--'"),
        (["val", "lr=1"], "cannot read 'lr=1'"),
        (["val", "--=1"], "there is no option"),
        (["trian", "--help"], "'trian'; did you mean train?"),
        (["help", "trian"], "'trian'; did you mean train?"),
        (["train"], f"{DefaultConfig.train_data_root} does not exist; give the right path: "),
        (["train", "--train-data-root=nowhere"], "nowhere does not exist"),
        (["train", "--train-data-root=" + 2000 * "x"], "does not exist"),
        (["test", "--test-data-root=nowhere/test1"], "nowhere/test1 does not exist"),
        (["val", "--load-model-path=gone.pth"], "gone.pth does not exist"),
        (["test", "--test-data-root=.", "--load-model-path=gone.pth"], "gone.pth does not exist"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_one_line_before_anything_happens(shell, words, says, tmp_path):
    done = shell(*words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1 and says in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_traps_of_these_tests_do_catch_torch(shell, tmp_path):
    done = shell("val", f"--checkpoint-root={tmp_path}")  # nothing is wrong with this
    assert done.returncode == 1 and "was loaded" in done.stderr


def test_a_missing_default_path_does_not_matter_where_the_right_one_is_given(tmp_path):
    words = ["train", f"--train-data-root={tmp_path}", "--load-model-path", "none"]
    assert check_usage(DefaultConfig, COMMANDS, words) == [
        "train",
        f"--train_data_root={tmp_path}",
        "--load_model_path=None",
    ]


# Between the command line and a command stands fire, which reads values as Python.

STRANGE = ["701", "1e3", "0x10", "None", "True", "[1,2]", "{'a':1}", "(1,)", "a,b", "'q'", "a=b"]
STRANGE += ["--x", "-", "1_000", "~", "a b", "日本", "#1", "$HOME", "\\n"]


@pytest.mark.parametrize("text", STRANGE)
def test_fire_hands_text_through_unharmed(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", "val", f"--checkpoint-root={text}"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PROJECT / "main.py"), run_name="__main__")
    assert end.value.code == 1
    assert f"there is no run in {text} yet" in capsys.readouterr().err


def test_without_our_parse_function_fire_would_have_changed_it():
    seen = []
    fire.Fire({"f": lambda env: seen.append(env)}, command=["f", "--env=1e3"])
    fire.Fire({"f": SetParseFn(str)(lambda env: seen.append(env))}, command=["f", "--env=1e3"])
    assert seen == [1000.0, "1e3"]
