"""What the Visualizer writes for TensorBoard, and that it is silent without a visdom server."""

import errno
import io
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import posix_only
from utils.visualize import Visualizer

NOBODY = 1  # a port where no visdom server is
PROJECT = Path(__file__).resolve().parent.parent


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_x_counts_up_by_itself_for_each_name(tmp_path):
    vis = Visualizer("e", tmp_path, NOBODY)
    for y in (3.0, 2.5, 2.25):
        vis.plot("loss", y)
    vis.plot_many({"loss": 2.0, "lr": 0.1})
    vis.plot("lr", 0.05, x=7)
    vis.plot("lr", torch.tensor(0.025))
    vis.close()
    curves = {"loss": ([0, 1, 2, 3], [3.0, 2.5, 2.25, 2.0]), "lr": ([0, 7, 8], [0.1, 0.05, 0.025])}
    events = events_of(tmp_path)
    for name, (xs, ys) in curves.items():
        points = events.Scalars(name)
        assert [point.step for point in points] == xs
        assert [point.value for point in points] == pytest.approx(ys)


def test_a_saved_state_continues_the_count(tmp_path):
    first = Visualizer(port=None)
    first.plot_many({"loss": 1.0, "lr": 0.1})
    first.plot("loss", 0.5, x=9)
    state = first.state_dict()
    assert state == {"loss": 10, "lr": 1}
    second = Visualizer(log_dir=tmp_path, port=None)
    second.load_state_dict(state)
    second.plot("loss", 0.25)
    second.close()
    assert [point.step for point in events_of(tmp_path).Scalars("loss")] == [10]


@pytest.mark.parametrize(
    "shape", [(32, 24), (1, 32, 24), (3, 32, 24), (5, 1, 32, 24), (2, 3, 32, 24)], ids=str
)
@pytest.mark.parametrize("kind", ["tensor", "array", "uint8"])
def test_images_of_all_shapes_are_written(tmp_path, shape, kind):
    image = torch.full(shape, 51 / 255)
    image[..., :16, :] = 1.0
    given = {"tensor": image, "array": image.numpy(), "uint8": (image * 255).round().byte()}[kind]
    vis = Visualizer("e", tmp_path, NOBODY)
    vis.img("batch", given)
    vis.img_many({"batch": given, "other": given})
    vis.close()
    events = events_of(tmp_path)
    assert [event.step for event in events.Images("batch")] == [0, 1]
    first = Image.open(io.BytesIO(events.Images("other")[0].encoded_image_string))
    assert first.height == 32
    assert set(np.unique(np.asarray(first))) == {51, 255}


@pytest.mark.parametrize("shape", [(4,), (2, 6, 4), (1, 2, 6, 4), (1, 1, 3, 6, 4)], ids=str)
def test_an_array_that_is_no_image_is_refused_by_name(shape):
    with pytest.raises(ValueError, match="weights: cannot show an image of shape"):
        Visualizer(port=None).img("weights", torch.zeros(shape))


def test_a_tensor_that_needs_a_gradient_can_be_shown(tmp_path):
    vis = Visualizer(log_dir=tmp_path, port=None)
    vis.img("weights", torch.rand(3, 8, 8, requires_grad=True))
    vis.close()
    assert len(events_of(tmp_path).Images("weights")) == 1


def test_log_lines_are_written(tmp_path):
    vis = Visualizer(log_dir=tmp_path, port=None)
    vis.log("<b>first</b>")
    vis.log({"loss": 0.5})
    vis.close()
    events = events_of(tmp_path).Tensors("log_text/text_summary")
    assert [event.step for event in events] == [0, 1]
    assert events[0].tensor_proto.string_val[0].endswith(b"] <b>first</b>")
    assert events[1].tensor_proto.string_val[0].endswith(b"] {'loss': 0.5}")


def use_everything(vis: Visualizer) -> None:
    vis.plot("loss", 1.0)
    vis.plot_many({"loss": 0.5, "lr": 0.1})
    vis.img("picture", torch.zeros(4, 4))
    vis.log("text")
    vis.flush()
    assert vis.bar(X=np.array([1.0])) is None
    assert vis.reinit("other") is vis
    assert not vis.connected


def test_without_a_server_it_is_silent_and_the_files_are_written(tmp_path, capfd):
    vis = Visualizer("e", tmp_path, NOBODY)
    use_everything(vis)
    vis.close()
    use_everything(vis)  # after the end nothing is written, and nothing fails
    vis.close()
    assert capfd.readouterr() == ("", "")
    assert [point.value for point in events_of(tmp_path).Scalars("loss")] == [1.0, 0.5]


def test_no_port_and_no_folder_make_a_visualizer_that_does_nothing(capfd):
    vis = Visualizer(port=None)
    use_everything(vis)
    vis.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("missing", ["utils.visdom_client", "visdom"])
def test_without_the_client_or_its_package_it_is_silent(missing, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, missing, None)  # importing it raises ImportError
    with socket.create_server(("127.0.0.1", 0)) as listener:
        vis = Visualizer("e", tmp_path, listener.getsockname()[1])
        use_everything(vis)
        vis.close()
    assert capfd.readouterr() == ("", "")
    assert len(events_of(tmp_path).Scalars("loss")) == 2


IMPORT = """
import sys, threading
from tests.helpers import posix_only
from utils.visualize import Visualizer

Visualizer(port=None), Visualizer(port=1)
print([name for name in sys.modules if name.split(".")[0] in ("tensorboard", "visdom")])
threading.Thread(target=lambda: 1 / 0).start()
"""


def test_an_import_loads_no_viewer_and_hides_no_error_of_another_thread():
    done = python(IMPORT)
    assert done.stdout == "[]\n"
    assert done.stderr.count("Traceback") == 1 and "ZeroDivisionError" in done.stderr


def python(lines: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", lines, *map(str, words)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_it_draws_no_random_number(tmp_path):
    def states() -> list:
        return [random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()]

    before = states()
    vis = Visualizer("e", tmp_path, NOBODY)
    use_everything(vis)
    vis.close()
    assert states() == before


FULL_DISK = """
import resource, sys
from tests.helpers import posix_only
from utils.visualize import Visualizer

for size in sys.argv[2:]:
    vis = Visualizer(log_dir=f"{sys.argv[1]}/warm-up", port=None)
    vis.close()  # the imports may write files
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), -1))  # no file may become larger
    vis = Visualizer(log_dir=f"{sys.argv[1]}/{size}", port=None)
    for step in range(50):
        vis.plot("loss", step)
    vis.flush()
    vis.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    print("complete with", size)
"""


@posix_only
def test_a_file_that_cannot_be_written_costs_one_line(tmp_path):
    # 0: opening the file fails; 100: no point fits into it; 2000: the last points do not fit.
    done = python(FULL_DISK, tmp_path, 0, 100, 1000, 2000, 10**6)
    assert done.stderr == ""
    expected = []
    for size in (0, 100, 1000, 2000):
        error = f"OSError: [Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}"
        folder = tmp_path / str(size)
        expected += [f"TensorBoard in {folder} failed ({error}); the run continues without it"]
        expected += [f"complete with {size}"]
        assert sum(path.stat().st_size for path in folder.iterdir()) <= size
    assert done.stdout.splitlines() == [*expected, "complete with 1000000"]
    assert len(events_of(tmp_path / "1000000").Scalars("loss")) == 50


def test_a_closed_visualizer_leaves_no_thread(tmp_path):
    before = set(threading.enumerate())
    for _ in range(3):
        vis = Visualizer("e", tmp_path, NOBODY)
        vis.plot("loss", 1.0)
        vis.close()
    assert set(threading.enumerate()) <= before
