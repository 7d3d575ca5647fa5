"""What a person types after `python main.py`, and what happens when it is wrong."""

import inspect
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import fire
import pytest
from fire.decorators import SetParseFn

import data.prepare
from config import COMMANDS, DefaultConfig
from utils.options import UsageError, check_usage, flag

PROJECT = Path(__file__).resolve().parent.parent
OPTIONS = list(get_type_hints(DefaultConfig))
BOOK = (
    *("env", "model", "train_data_root", "test_data_root", "load_model_path", "batch_size"),
    *("use_gpu", "num_workers", "print_freq", "debug_file", "result_file", "max_epoch"),
    *("lr", "lr_decay", "weight_decay"),
)
HEAVY = ("torch", "torchvision", "numpy", "fire", "visdom", "matplotlib", "PIL")


@pytest.fixture(scope="session")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules in the place of the heavy ones, which cry out when they are imported."""
    folder = tmp_path_factory.mktemp("traps")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name} was loaded')\n")
    return folder


@pytest.fixture
def shell(tmp_path: Path, traps: Path):
    """`python main.py …` in an empty folder, where loading torch and the like is caught."""

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(PROJECT / "main.py"), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(traps), "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    return run


def read(*words: str) -> DefaultConfig:
    """Read options as the command line does: checked, normalised, and read again by a command."""
    command, *options = check_usage(DefaultConfig, COMMANDS, ["prepare", *words])
    assert command == "prepare"
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
        "--source=internet",
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_its_name(word, capsys):
    name, _, value = word.partition("=")
    with pytest.raises(SystemExit) as end:
        read(word)
    line, hint = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "help" in hint
    assert line.startswith(f"{name} takes ") and line.endswith(f"not {value or 'True'!r}")


def test_an_unknown_model_or_data_set_is_refused_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"--model=Resnet34 .*did you mean ResNet34"):
        DefaultConfig(model="Resnet34")
    with pytest.raises(UsageError, match=r"--dataset=Loader is not in data/; .*DogCat"):
        DefaultConfig(dataset="Loader")
    with pytest.raises(UsageError, match=r"--dataset=CatDog .*DogCat"):
        DefaultConfig(dataset="CatDog")


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


def test_every_misspelt_command_is_refused_and_the_right_one_suggested(capsys):
    for name in COMMANDS:
        for wrong in one_edit_away(name) - set(COMMANDS):
            with pytest.raises(SystemExit) as end:
                check_usage(DefaultConfig, COMMANDS, [wrong])
            assert end.value.code == 2
            assert f"did you mean {name}?" in capsys.readouterr().err, wrong


def test_each_option_is_one_line_with_a_comment_and_a_row_of_help():
    source = inspect.getsource(DefaultConfig)
    rows = DefaultConfig.table(COMMANDS).splitlines()
    for name in OPTIONS:
        lines = re.findall(rf"^ {{4}}{name}: .+= .+  # \S.+$", source, re.M)
        assert len(lines) == 1, f"{name} is not one line with a comment"
        meaning = lines[0].split("  # ")[1]
        written = f"{flag(name)}={getattr(DefaultConfig, name)} "
        row = [row for row in rows if row.strip().startswith(written)]
        assert len(row) == 1 and meaning in row[0], f"{name} has no row of help"


# The command line.


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"], ["train", "--help"]], ids=str)
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
        (["prepare", "--no-use-gpu"], "did you mean --use-gpu?"),
        (["prepare", "--lr=fast"], "--lr takes a number above 0, not 'fast'"),
        (["prepare", "--lr"], "--lr takes a number above 0"),
        (["prepare", "--lr="], "--lr takes a number above 0, not ''"),
        (["prepare", "--env="], "--env takes text, not ''"),
        (["prepare", "--lr", "--balanced"], "--lr takes a number above 0"),
        (["prepare", "--lr=1", "--lr=2"], "--lr is given twice"),
        (["prepare", "--batch-size=1", "--batch_size=1"], "is given twice"),
        (["prepare", "more"], "cannot read 'more'"),
        (["prepare", "--lr=1", "more"], "cannot read 'more'"),
        (["prepare", "--lr", "1", "more"], "cannot read 'more'"),
        (["prepare", "-lr=1"], "cannot read '-lr=1'"),
        (["prepare", "-"], "cannot read '-'"),
        (["prepare", "--", "--trace"], "cannot read '--'"),
        (["prepare", "lr=1"], "cannot read 'lr=1'"),
        (["prepare", "--=1"], "there is no option"),
        (["train"], "data/demo/train does not exist; give the right path: --train-data-root="),
        (["train", "--train-data-root=nowhere"], "nowhere does not exist"),
        (["train", "--train-data-root=" + 2000 * "x"], "does not exist"),
        (["test", "--test-data-root=nowhere/test1"], "nowhere/test1 does not exist"),
        (["val", "--load-model-path=gone.pth"], "gone.pth does not exist"),
        (["test", "--test-data-root=.", "--load-model-path=gone.pth"], "gone.pth does not exist"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_two_lines_before_anything_happens(shell, words, says, tmp_path):
    done = shell(*words)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert 1 <= len(lines) <= 2 and says in lines[0]
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
def test_fire_hands_text_through_unharmed(text, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr(
        data.prepare, "prepare_demo", lambda root, *args, **kwargs: folders.append(str(root))
    )
    words = ["main.py", "prepare", f"--prepare-root={text}", f"--env={text}", "--count=10"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(PROJECT / "main.py"), run_name="__main__")
    expected = "data/demo" if text == "None" else str(Path(text))
    assert folders == [expected]
    assert f"{expected} is ready" in capsys.readouterr().out


def test_without_our_parse_function_fire_would_have_changed_it():
    seen = []
    fire.Fire({"f": lambda env: seen.append(env)}, command=["f", "--env=1e3"])
    fire.Fire({"f": SetParseFn(str)(lambda env: seen.append(env))}, command=["f", "--env=1e3"])
    assert seen == [1000.0, "1e3"]
