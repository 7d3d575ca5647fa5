"""What the viewer shows, read back from a real visdom server and from TensorBoard's files."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import visdom
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from visdom_server import visdom_server

import main
from utils.visualize import NullVisdom, Visualizer

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning:visdom")
NOBODY = 1  # a port where no visdom server is
SLOW = 10.0  # seconds; waiting for a dead server would take far longer


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with visdom_server() as port:
        yield port


class Pages:
    """What is on the server now."""

    def __init__(self, port: int) -> None:
        self.client = visdom.Visdom(
            server="http://127.0.0.1", port=port, use_incoming_socket=False, raise_exceptions=True
        )

    def window(self, env: str, name: str) -> dict:
        return json.loads(self.client.get_window_data(win=name, env=env) or "null")

    def curve(self, env: str, name: str) -> tuple[list[float], list[float]]:
        (line,) = self.window(env, name)["content"]["data"]
        return values(line["x"]), values(line["y"])

    def picture(self, env: str, name: str) -> np.ndarray:
        """The picture of a window: (H, W, 3)."""
        content = self.window(env, name)["content"]
        kind, data = content["src"].split(";base64,")
        assert kind.startswith("data:image/")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def values(axis: list | dict) -> list[float]:
    """The numbers of a plot's axis, which newer plotly packs into base64."""
    if isinstance(axis, dict):
        return np.frombuffer(base64.b64decode(axis["bdata"]), axis["dtype"]).tolist()
    return axis


@pytest.fixture
def pages(port: int) -> Pages:
    return Pages(port)


@pytest.fixture
def env(request: pytest.FixtureRequest) -> str:
    """A visdom environment for one test alone."""
    return f"{request.node.originalname}{abs(hash(request.node.name))}"


@pytest.fixture
def vis(env: str, port: int, tmp_path: Path) -> Visualizer:
    vis = Visualizer(env, tmp_path, port)
    assert vis.connected
    return vis


def events_of(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return events


def test_x_counts_up_by_itself_for_each_name_on_the_server_and_in_the_files(
    vis, env, pages, tmp_path
):
    for y in (3.0, 2.5, 2.25):
        vis.plot("loss", y)
    vis.plot_many({"loss": 2.0, "lr": 0.1})
    vis.plot("lr", 0.05, x=7)
    vis.plot("lr", 0.025)
    vis.close()
    curves = {"loss": ([0, 1, 2, 3], [3.0, 2.5, 2.25, 2.0]), "lr": ([0, 7, 8], [0.1, 0.05, 0.025])}
    events = events_of(tmp_path)
    for name, (xs, ys) in curves.items():
        assert pages.curve(env, name) == (xs, ys)
        points = events.Scalars(name)
        assert [point.step for point in points] == xs
        assert [point.value for point in points] == pytest.approx(ys)


@pytest.mark.parametrize(
    "shape", [(32, 24), (1, 32, 24), (3, 32, 24), (5, 1, 32, 24), (2, 3, 32, 24)], ids=str
)
@pytest.mark.parametrize("kind", ["tensor", "array", "uint8"])
def test_pictures_of_all_shapes_arrive(vis, env, pages, tmp_path, shape, kind):
    image = torch.full(shape, 51 / 255)
    image[..., :16, :] = 1.0
    given = {"tensor": image, "array": image.numpy(), "uint8": (image * 255).round().byte()}[kind]
    vis.img("batch", given)
    vis.img_many({"batch": given, "other": given})
    vis.close()
    for name in ("batch", "other"):
        shown = pages.picture(env, name).astype(int)
        for value in (255, 51):
            share = (abs(shown - value).max(axis=-1) < 12).mean()  # JPEG is not exact
            assert share > 0.2, f"{value} is not in {name}"
    events = events_of(tmp_path)
    assert [event.step for event in events.Images("batch")] == [0, 1]
    first = Image.open(io.BytesIO(events.Images("other")[0].encoded_image_string))
    assert first.height == 32
    assert set(np.unique(np.asarray(first))) == {51, 255}


@pytest.mark.parametrize("shape", [(4,), (2, 6, 4), (1, 2, 6, 4), (1, 1, 3, 6, 4)], ids=str)
def test_what_is_no_picture_is_refused_by_name(shape):
    with pytest.raises(ValueError, match="weights: cannot show an image of shape"):
        Visualizer(port=None).img("weights", torch.zeros(shape))


def test_a_gpu_like_tensor_that_needs_a_gradient_can_be_shown(tmp_path):
    vis = Visualizer(log_dir=tmp_path, port=None)
    vis.img("weights", torch.rand(3, 8, 8, requires_grad=True))
    vis.close()
    assert len(events_of(tmp_path).Images("weights")) == 1


def test_log_lines_are_escaped_and_stay_below_each_other(vis, env, pages, tmp_path):
    vis.log("<script>alert('x')</script> & more")
    vis.log({"loss": 0.5})
    vis.close()
    text = pages.window(env, "log_text")["content"]
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more<br>" in text
    assert text.count("<br>") == 2 and text.index("script") < text.index("0.5")
    assert text.startswith("[") and text[5] == "_" and text[1:5].isdigit()
    events = events_of(tmp_path).Tensors("log_text/text_summary")
    assert [event.step for event in events] == [0, 1]
    assert b"<script>" in events[0].tensor_proto.string_val[0]


def test_reinit_goes_on_in_another_environment(vis, env, pages):
    vis.plot("loss", 1.0)
    vis.tasks.join()
    assert vis.reinit(f"{env}-2") is vis
    vis.plot("loss", 2.0)
    vis.plot("loss", 3.0)
    vis.close()
    assert pages.curve(env, "loss") == ([0], [1.0])
    assert pages.curve(f"{env}-2", "loss") == ([1, 2], [2.0, 3.0])


def test_any_other_visdom_call_goes_through(vis, env, pages):
    window = vis.bar(X=np.array([1.0, 4.0]), win="bars")
    assert window == "bars" and vis.win_exists("bars")
    (bars,) = pages.window(env, "bars")["content"]["data"]
    assert bars["type"] == "bar" and values(bars["y"]) == [1.0, 4.0]
    assert vis.env == env
    with pytest.raises(AttributeError):
        vis.no_such_call()
    vis.close()


def test_a_wrong_native_call_is_the_callers_error_and_the_viewer_stays(vis):
    with pytest.raises(AssertionError):
        vis.bar(X=np.zeros((2, 2, 2)))
    assert vis.connected
    vis.close()


def test_a_training_shows_its_curves(pages, port, env, pictures, tmp_path, caplog, capfd):
    caplog.clear()
    run = train(pictures, tmp_path, port, env=env)
    assert not caplog.records and not capfd.readouterr().err  # visdom's own chatter is not ours
    xs, ys = pages.curve(env, "loss")
    assert xs == [1, 2, 3, 4]
    points = events_of(run).Scalars("loss")
    assert ys == pytest.approx([point.value for point in points])
    assert pages.curve(env, "val_accuracy")[0] == [1, 2]


def train(pictures: Path, root: Path, port: int, env: str = "default") -> Path:
    return main.train(
        train_data_root=pictures / "train",
        checkpoint_root=root,
        visdom_port=port,
        env=env,
        max_epoch=2,
        image_size=64,
        batch_size=21,
        print_freq=1,
        num_workers=0,
        use_gpu=False,
        debug_file=None,
    )


# Where no server is, or one that dies, or one that never answers.


def test_without_a_server_nothing_happens_and_the_files_are_still_written(tmp_path, capfd):
    vis = Visualizer("e", tmp_path, NOBODY)
    assert not vis.connected and isinstance(vis.vis, NullVisdom)
    vis.plot("loss", 1.0)
    vis.img("picture", torch.zeros(4, 4))
    vis.log("text")
    assert vis.bar(X=np.array([1.0])) is None
    assert vis.reinit("other") is vis
    vis.close()
    assert capfd.readouterr() == ("", "")
    assert events_of(tmp_path).Scalars("loss")[0].value == 1.0


def test_no_port_and_no_folder_make_a_visualizer_that_does_nothing(capfd):
    vis = Visualizer(port=None)
    vis.plot_many({"a": 1.0, "b": 2.0})
    vis.flush()
    vis.close()
    assert not vis.connected and capfd.readouterr() == ("", "")


def test_a_server_killed_during_training_costs_one_line_and_no_bit(
    pictures, tmp_path, monkeypatch, capfd
):
    alone = train(pictures, tmp_path / "alone", NOBODY)
    with ExitStack() as stack:
        port = stack.enter_context(visdom_server())
        monkeypatch.setattr(main, "pause_if_asked", lambda debug_file: stack.close())
        capfd.readouterr()
        run = train(pictures, tmp_path / "killed", port)
    out, err = capfd.readouterr()
    assert (out + err).count("visdom does not answer any more") == 1
    assert "Traceback" not in out + err and "Error:" not in out + err
    assert (run / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


def test_a_native_call_to_a_server_that_died_does_not_raise(capfd):
    with visdom_server() as port:
        vis = Visualizer("e", None, port)
        assert vis.connected
    assert vis.bar(X=np.array([1.0, 2.0])) is None
    assert not vis.connected
    assert "visdom does not answer any more" in capfd.readouterr().out


@pytest.mark.parametrize("answers", [0, 1, 2], ids=["never", "once", "twice"])
def test_a_server_that_stops_answering_does_not_stop_a_run(answers, capfd, monkeypatch):
    monkeypatch.setattr("utils.visualize.SECONDS_TO_FINISH", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        threading.Thread(target=serve, args=(listener, answers), daemon=True).start()
        begin = time.monotonic()
        vis = Visualizer("e", None, listener.getsockname()[1])
        for step in range(50):
            vis.plot("loss", step)
        assert time.monotonic() - begin < SLOW
        vis.close()
        assert time.monotonic() - begin < 2 * SLOW
    assert "Traceback" not in "".join(capfd.readouterr())


def serve(listener: socket.socket, answers: int) -> None:
    """Answer so many requests, then take connections and keep silent."""
    kept = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        kept.append(connection)
        for _ in range(answers):
            if connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
                answers -= 1


def test_a_closed_visualizer_leaves_no_thread_of_its_own(tmp_path):
    before = set(threading.enumerate())
    for _ in range(3):
        vis = Visualizer("e", tmp_path, NOBODY)
        vis.plot("loss", 1.0)
        vis.close()
    deadline = time.monotonic() + SLOW
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
