"""One training by several ranks, through torchrun and the real commands."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.drawings import draw_set
from tests.helpers import NOBODY, PRECISION, PROJECT, assert_same_weights, linux_only, wait_until
from tests.test_debug import Terminal
from utils import checkpoint
from utils.files import read_csv

from . import Launch

pytestmark = linux_only

OPTIONS = ["--dataset=Pictures", "--image-size=64", "--use-gpu=false", "--num-workers=1"]
OPTIONS += [f"--visdom-port={NOBODY}", "--print-freq=1", "--debug-file=None"]
# Without dropout, which each rank draws for itself, and with small steps: larger ones make a run
# chaotic, and even another number of threads changes its losses after some steps.
EQUAL = [*OPTIONS, "--dropout=0", "--precision=fp32"]
SHORT = [*OPTIONS, "--batch-size=8", f"--precision={PRECISION}", "--save-minutes=0.0001"]
STEPS = 3  # in an epoch; the last batch has six pictures, too few to be divided among four ranks


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 44 pictures to train with and 19 for val: numbers that 2, 3 and 4 do not divide."""
    root = tmp_path_factory.mktemp("uneven")
    draw_set(root, count=66)
    for name in sorted((root / "train/fir").iterdir())[:3]:
        name.unlink()
    return root


def plain(folder: Path, *words: str) -> str:
    """Run a command without torchrun; return what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(PROJECT / "main.py"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def launch(ranks: int, folder: Path, *words: str) -> str:
    """Run a command under torchrun, or without it for 0 ranks; return what it prints."""
    if ranks == 0:
        return plain(folder, *words)
    started = Launch(ranks, *words, folder=folder)
    assert started.wait() == 0, started.text[-3000:]
    return started.text


def the_run(root: Path) -> Path:
    (path,) = root.glob("*/last.pth")
    return path.parent


def losses_of(run: Path) -> list[float]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [event.value for event in events.Scalars("step/loss")]


@pytest.fixture(scope="module")
def trained(uneven: Path, tmp_path_factory: pytest.TempPathFactory):
    """Train with some options on a number of ranks, 0: without torchrun; return the run."""

    @cache
    def train(ranks: int, *more: str) -> Path:
        root = tmp_path_factory.mktemp(f"ranks{ranks}")
        words = ["--lr=1e-4"] if not any(word.startswith("--lr=") for word in more) else []
        words += [*EQUAL, "--batch-size=19", f"--train-data-root={uneven / 'train'}", *more]
        launch(ranks, root, "train", *words, f"--checkpoint-root={root}")
        return the_run(root)

    return train


def test_one_rank_gives_the_bits_of_a_run_without_torchrun(trained):
    one, other = trained(0, "--max-epoch=17"), trained(1, "--max-epoch=17")
    assert_same_weights(one, other)
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_losses_are_those_of_one_rank(trained, ranks):
    expected, found = (losses_of(trained(n, "--max-epoch=17")) for n in (0, ranks))
    assert len(found) == len(expected) == 17 * STEPS - 17  # the last one of each epoch is not shown
    assert found == pytest.approx(expected, abs=1e-5)
    rows = [read_csv(trained(n, "--max-epoch=17") / "metrics.csv") for n in (0, ranks)]
    for one, other in zip(*rows, strict=True):
        for name in ("train_loss", "val_loss", "lr"):
            assert float(other[name]) == pytest.approx(float(one[name]), abs=1e-5)
        assert other["val_accuracy"] == one["val_accuracy"]


@pytest.mark.parametrize(
    "more", ["--augment=mixup,cutmix", "--accumulate=2", "--oversample", "--freeze=1"]
)
def test_other_ways_to_train_are_the_same_on_two_ranks(trained, more):
    expected, found = (losses_of(trained(n, "--max-epoch=3", more)) for n in (0, 2))
    assert found == pytest.approx(expected, abs=1e-5)


def test_sync_bn_is_batch_norm_over_all_ranks(tmp_path):
    launch(3, tmp_path, "-m", "tests.distributed.batch_norm")


# The steps are tiny, because a deep net with BatchNorm is chaotic. Without --sync-bn the losses
# differ by up to 0.07 all the same.
@pytest.mark.parametrize("ranks", [2, 4])
def test_with_sync_bn_a_model_with_batch_norm_learns_the_same(trained, ranks):
    options = ["--model=torchvision/shufflenet_v2_x0_5", "--sync-bn", "--lr=1e-6", "--max-epoch=3"]
    expected, found = (losses_of(trained(n, *options)) for n in (0, ranks))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_small_share_of_batch_norm_is_said(trained):
    run = trained(2, "--model=torchvision/shufflenet_v2_x0_5", "--max-epoch=1")
    line = "BatchNorm sees 9 pictures on each rank; with --sync-bn all 19"
    assert (run / "log.txt").read_text().count(line) == 1


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_val_and_test_see_each_picture_once_and_in_order(trained, uneven, tmp_path, ranks):
    words = [f"--load-model-path={trained(0, '--max-epoch=17')}", "--use-gpu=false"]
    words += ["--batch-size=4", f"--test-data-root={uneven / 'test1'}"]
    tables = []
    for number in (0, ranks):
        text = launch(number, tmp_path / f"{number}", "val", *words)
        launch(number, tmp_path / f"{number}", "test", *words)
        with open(tmp_path / f"{number}" / "result.csv") as file:
            rows = [*csv.reader(file)]
        counts = re.findall(r"^(?:fir|oak) .* (\d+) +(\d+)$", text, re.M)
        assert sum(int(count) for row in counts for count in row) == 19
        tables.append((counts, [row[0] for row in rows], [float(row[1]) for row in rows[1:]]))
    (counts, ids, values), (found_counts, found_ids, found_values) = tables
    assert found_counts == counts and found_ids == ids
    assert found_values == pytest.approx(values, abs=1e-5)


def test_a_run_of_two_ranks_goes_on_with_one_and_with_four(trained, uneven, tmp_path):
    options = [*EQUAL, "--batch-size=19", f"--train-data-root={uneven / 'train'}"]
    options += [f"--checkpoint-root={tmp_path}"]
    launch(2, tmp_path, "train", *options, "--max-epoch=2")
    for ranks, epochs in ((0, 3), (4, 4)):
        more = [f"--resume={the_run(tmp_path)}", "--allow-changes", f"--max-epoch={epochs}"]
        launch(ranks, tmp_path, "train", *options, *more)
    state = checkpoint.read(the_run(tmp_path) / "last.pth")
    assert [row["epoch"] for row in state["history"]] == [1, 2, 3, 4]


def short_words(uneven: Path, root: Path, epochs: int = 2) -> list[str]:
    paths = [f"--train-data-root={uneven / 'train'}", f"--checkpoint-root={root}"]
    return ["train", *SHORT, *paths, f"--max-epoch={epochs}"]


@pytest.mark.parametrize("victim", [0, 1])
def test_after_the_kill_of_a_rank_the_run_goes_on_to_the_same_bits(uneven, tmp_path, victim):
    undisturbed = tmp_path / "undisturbed"
    launch(2, undisturbed, *short_words(uneven, undisturbed))
    started = Launch(
        2, *short_words(uneven, tmp_path / "killed"), folder=tmp_path / "killed", restarts=1
    )
    wait_until(lambda: "epoch 1/2" in started.text)
    os.kill(started.ranks()[victim], signal.SIGKILL)
    assert started.wait() == 0, started.text[-3000:]
    assert "goes on at epoch" in started.text
    assert_same_weights(the_run(undisturbed), the_run(tmp_path / "killed"))


def test_after_the_kill_of_a_rank_two_machines_meet_again_and_go_on(uneven, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}"]
    options += ["--rdzv-id=flowers1"]
    words = short_words(uneven, tmp_path / "killed", epochs=6)
    machines = [
        Launch(1, *words, folder=tmp_path / f"machine{n}", restarts=2, options=options)
        for n in (0, 1)
    ]
    wait_until(lambda: any("epoch 1/6" in machine.text for machine in machines))
    other = next(machine for machine in machines if "epoch 1/6" not in machine.text)
    os.kill(*other.ranks().values(), signal.SIGKILL)
    assert [machine.wait() for machine in machines] == [0, 0], machines[0].text[-3000:]
    assert any("goes on at epoch" in machine.text for machine in machines)
    assert len(read_csv(the_run(tmp_path / "killed") / "metrics.csv")) == 6


@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_rank_ends_both_at_the_same_step(uneven, tmp_path, victim):
    words = short_words(uneven, tmp_path, epochs=30)
    started = Launch(2, *words, folder=tmp_path)
    wait_until(lambda: "epoch 2/30" in started.text)
    os.kill(started.ranks()[victim], signal.SIGTERM)
    assert started.wait() == 1
    assert {*re.findall(r"exitcode  : (-?\d+)", started.text)} == {"143"}
    assert started.text.count("stopped by SIGTERM; --resume goes on") == 2
    assert not started.left()
    state = checkpoint.read(the_run(tmp_path) / "last.pth", digest_required=True)
    assert state["epoch"] >= 2


def test_a_second_launch_into_the_same_run_is_refused(uneven, tmp_path):
    words = short_words(uneven, tmp_path, epochs=40)
    first = Launch(2, *words, folder=tmp_path)
    wait_until(lambda: "epoch 1/40" in first.text)
    second = Launch(2, *words, f"--resume={the_run(tmp_path)}", folder=tmp_path)
    assert second.wait(60) == 1
    assert "another process is at work in" in second.text
    assert not second.left() and first.process.poll() is None
    os.kill(first.ranks()[0], signal.SIGTERM)
    assert first.wait() == 1


def test_a_rank_that_fails_ends_the_others(uneven, tmp_path):
    (tmp_path / "fails.py").write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        f"sys.argv = ['main.py', *{short_words(uneven, tmp_path, epochs=40)!r}]\n"
        "import main\n"
        "from utils import engine\n"
        "def evaluate(*_, **__):\n"
        "    raise MemoryError('of rank 1')\n"
        "if os.environ['RANK'] == '1':\n"
        "    engine.evaluate = evaluate\n"
        "from utils.failures import one_line_failures\n"
        "with one_line_failures(False):\n"
        "    main.train(**{w[2:].split('=')[0].replace('-', '_'): w.split('=')[1]\n"
        "                  for w in sys.argv[2:]})\n"
    )
    failing = Launch(2, str(tmp_path / "fails.py"), folder=tmp_path)
    assert failing.wait(60) == 1
    assert "MemoryError: of rank 1" in failing.text
    assert not failing.left()


def debugged(uneven: Path, folder: Path, touch: Path) -> Terminal:
    """Start a long run of two ranks at a terminal; the debugger opens at its first step."""
    touch.touch()
    words = short_words(uneven, folder / "runs", epochs=500)
    words[words.index("--debug-file=None")] = f"--debug-file={touch}"
    return Terminal(words, folder, ["-m", "torch.distributed.run", "--nproc-per-node=2"])


def test_the_debugger_opens_on_the_first_rank_and_q_ends_all(uneven, tmp_path):
    touch = tmp_path / "debug"
    with debugged(uneven, tmp_path, touch) as terminal:
        terminal.prompt()
        assert "\n0\n" in terminal.answer("p distributed.RANK")
        assert "torch.Size([8, 2])" in terminal.answer("p logits.shape")  # of both ranks
        terminal.type("c")
        terminal.wait_for("epoch 1/500")
        touch.touch()
        terminal.prompt()
        terminal.type("q")
        assert terminal.end() == 0, terminal.seen[-2000:]
    assert "Traceback" not in terminal.seen


def test_an_option_that_is_changed_in_the_debugger_changes_on_all_ranks(uneven, tmp_path):
    with debugged(uneven, tmp_path, tmp_path / "debug") as terminal:
        terminal.prompt()
        terminal.answer("opt.max_epoch = 1")
        terminal.type("c")
        assert terminal.end() == 0, terminal.seen[-2000:]  # both ranks end after this epoch
    assert len(read_csv(the_run(tmp_path / "runs") / "metrics.csv")) == 1


def test_a_picture_that_cannot_be_read_is_named_once(uneven, tmp_path):
    broken = tmp_path / "pictures"
    for name in ("fir", "oak"):
        (broken / name).mkdir(parents=True)
        for path in (uneven / "train" / name).iterdir():
            (broken / name / path.name).symlink_to(path)
    lost = min((broken / "fir").iterdir())  # more of them would end the run
    lost.unlink()
    lost.write_bytes(b"no picture")
    words = [*OPTIONS, f"--train-data-root={broken}", f"--checkpoint-root={tmp_path / 'runs'}"]
    text = launch(3, tmp_path, "train", *words, "--max-epoch=1", "--batch-size=19")
    assert text.count(f"{lost.name} is left out") == 1
