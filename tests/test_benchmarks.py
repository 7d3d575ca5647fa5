"""`make bench` measures what it says; how fast it is depends on the machine and is not tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import main


def test_every_row_has_a_ratio_of_two_sides(pictures):
    command = [sys.executable, "-m", "tests.benchmarks", "--data", str(pictures / "train")]
    command += ["--size=64", "--batch=4", "--steps=3", "--rounds=2"]
    folder = Path(main.__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^(.{38}) +([\d.]+) +\(([\d.]+) … ([\d.]+)\) +(\d+) : +(\d+)$", done.stdout, re.M
    )
    names = [row[0].strip() for row in rows]
    assert len(names) == 14 and "second epoch / the book's loop" in names
    for _, middle, least, most, one, other in rows:
        assert 0 < float(least) <= float(middle) <= float(most)
        assert int(one) > 0 and int(other) > 0
    assert "peak memory" in done.stdout


def test_the_books_loop_tells_its_accuracy_on_our_val_split(pictures):
    command = [sys.executable, "-m", "tests.benchmarks.book", "SqueezeNet"]
    command += [str(pictures / "train"), "64", "4", "12", "val"]
    folder = Path(main.__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    *times, last = done.stdout.splitlines()
    assert len(times) == 12, done.stderr
    correct = 18 * float(re.fullmatch(r"accuracy (0\.\d{4})", last)[1])
    assert correct == pytest.approx(round(correct), abs=0.01)
