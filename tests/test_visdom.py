"""What the Visualizer shows on a real visdom server, and what a bad server does to a run: nothing.

Delete this file and tests/visdom_server.py with utils/visdom_client.py.
"""

import base64
import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import visdom
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from tests.helpers import SMALL
from tests.visdom_server import visdom_server
from utils import visdom_client
from utils.visualize import Visualizer

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning:visdom")


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

    def image(self, env: str, name: str) -> np.ndarray:
        """The image of a window: (H, W, 3)."""
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


def test_curves_are_the_same_on_the_server_as_in_the_files(vis, env, pages, tmp_path):
    for y in (3.0, 2.5, 2.25):
        vis.plot("loss", y)
    vis.plot_many({"loss": 2.0, "lr": 0.1})
    vis.plot("lr", 0.05, x=7)
    vis.plot("lr", 0.025)
    vis.close()
    assert pages.curve(env, "loss") == ([0, 1, 2, 3], [3.0, 2.5, 2.25, 2.0])
    assert pages.curve(env, "lr") == ([0, 7, 8], [0.1, 0.05, 0.025])
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("loss", "lr"):
        points = events.Scalars(name)
        assert [point.step for point in points] == pages.curve(env, name)[0]
        assert [point.value for point in points] == pytest.approx(pages.curve(env, name)[1])


@pytest.mark.parametrize(
    "shape", [(32, 24), (1, 32, 24), (3, 32, 24), (5, 1, 32, 24), (2, 3, 32, 24)], ids=str
)
@pytest.mark.parametrize("kind", ["tensor", "array", "uint8"])
def test_images_of_all_shapes_arrive(vis, env, pages, shape, kind):
    image = torch.full(shape, 51 / 255)
    image[..., :16, :] = 1.0
    given = {"tensor": image, "array": image.numpy(), "uint8": (image * 255).round().byte()}[kind]
    vis.img_many({"batch": given, "other": given})
    vis.close()
    for name in ("batch", "other"):
        shown = pages.image(env, name).astype(int)
        for value in (255, 51):
            share = (abs(shown - value).max(axis=-1) < 12).mean()  # JPEG is not exact
            assert share > 0.2, f"{value} is not in {name}"


def test_log_lines_are_escaped_and_stay_below_each_other(vis, env, pages):
    vis.log("<script>alert('x')</script> & more")
    vis.log({"loss": 0.5})
    vis.close()
    text = pages.window(env, "log_text")["content"]
    assert "<script>" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more<br>" in text
    assert text.count("<br>") == 2 and text.index("script") < text.index("0.5")
    assert text.startswith("[") and text[5] == "_" and text[1:5].isdigit()


def test_reinit_continues_in_another_environment(vis, env, pages):
    vis.plot("loss", 1.0)
    assert vis.reinit(f"{env}-2") is vis
    vis.plot("loss", 2.0)
    vis.plot("loss", 3.0)
    vis.close()
    assert pages.curve(env, "loss") == ([0], [1.0])
    assert pages.curve(f"{env}-2", "loss") == ([1, 2], [2.0, 3.0])


def test_any_other_visdom_call_works(vis, env, pages):
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


def test_close_ends_the_thread(vis):
    vis.plot("loss", 1.0)
    thread = vis.vis.thread
    assert thread.is_alive()
    vis.close()
    assert not thread.is_alive() and not vis.connected


def test_a_training_shows_its_curves(pages, port, env, pictures, tmp_path, caplog, capfd):
    caplog.clear()
    run = train(pictures, tmp_path, port, env=env)
    assert not caplog.records and not capfd.readouterr().err  # nothing of visdom's own messages
    xs, ys = pages.curve(env, "loss")
    assert xs == [1, 2, 3, 4]
    points = EventAccumulator(str(run)).Reload().Scalars("loss")
    assert ys == pytest.approx([point.value for point in points])
    assert pages.curve(env, "val_accuracy")[0] == [1, 2]


def train(pictures: Path, root: Path, port: int, env: str = "default") -> Path:
    options = SMALL | {"visdom_port": port, "env": env, "batch_size": 21, "max_epoch": 2}
    return main.train(train_data_root=pictures / "train", checkpoint_root=root, **options)


# A proxy, a server that dies, one that never answers, one that is too slow.


def test_a_proxy_of_the_environment_is_not_used(env, port, pages, monkeypatch):
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, url)
        vis = Visualizer(env, None, port)
        vis.plot("loss", 1.0)
        vis.bar(X=np.array([1.0, 4.0]), win="bars")
        vis.close()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            proxy.accept()
        monkeypatch.undo()  # pages is a plain client
        assert pages.curve(env, "loss") == ([0], [1.0])
        assert pages.window(env, "bars")["content"]["data"][0]["type"] == "bar"


def test_a_server_killed_during_training_costs_one_line_and_no_bit(
    pictures, tmp_path, monkeypatch, capfd
):
    alone = train(pictures, tmp_path / "alone", port=1)
    with ExitStack() as stack:
        port = stack.enter_context(visdom_server())
        plot_many = Visualizer.plot_many

        def kill_and_plot(*args, **kwargs) -> None:
            stack.close()
            plot_many(*args, **kwargs)

        monkeypatch.setattr(Visualizer, "plot_many", kill_and_plot)
        capfd.readouterr()
        run = train(pictures, tmp_path / "killed", port)
    out, err = capfd.readouterr()
    assert (out + err).count("visdom failed (OSError: no answer") == 1
    assert "Traceback" not in out + err and "Error connecting" not in out + err
    assert (run / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()


@contextmanager
def mute_server(answers: int) -> Iterator[int]:
    """Yield the port of a server that answers so many requests and then keeps silent."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        threading.Thread(target=serve, args=(listener, answers), daemon=True).start()
        yield listener.getsockname()[1]


def serve(listener: socket.socket, answers: int) -> None:
    """Answer so many requests, then take connections and keep silent."""
    kept = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        kept.append(connection)
        while answers and connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
            answers -= 1


def test_a_native_call_to_a_server_that_died_does_not_raise(monkeypatch, capfd):
    monkeypatch.setattr(visdom_client, "SECONDS_TO_ANSWER", 2)
    with mute_server(answers=1) as port:
        vis = Visualizer("e", None, port)
        assert vis.connected
        assert vis.bar(X=np.array([1.0, 2.0])) is None
        assert not vis.connected
        out = f"visdom failed (OSError: no answer from port {port}); the run continues without it"
        assert capfd.readouterr() == (out + "\n", "")
        vis.close()
        assert capfd.readouterr() == ("", "")
        assert not vis.vis.thread.is_alive()


@pytest.mark.parametrize("answers", [0, 1, 2], ids=["never", "once", "twice"])
def test_a_server_that_stops_answering_costs_one_line(answers, capfd, monkeypatch):
    monkeypatch.setattr(visdom_client, "SECONDS_TO_ANSWER", 0.5)
    with mute_server(answers) as port:
        vis = Visualizer("e", None, port)
        for step in range(50):
            vis.plot("loss", step)
        vis.close()
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and out.startswith("visdom failed (OSError: no answer") and not err


def test_a_slow_server_does_not_stop_the_loop_and_gets_a_bounded_queue(monkeypatch):
    class Slow:
        def line(self, **_) -> None:
            seen.append(1)
            may_go_on.wait()

    seen, may_go_on = [], threading.Event()
    monkeypatch.setattr(visdom_client, "connect", lambda *_: Slow())
    vis = Visualizer("e", None, port=1)
    for step in range(1500):  # would never end if a plot waited for the server
        vis.plot("loss", step)
    assert vis.connected and len(seen) <= 1
    may_go_on.set()
    vis.close()
    assert 1000 <= len(seen) <= 1001


def test_a_call_that_visdom_refuses_costs_one_line(vis, monkeypatch, capfd):
    vis.vis.send("line", Y=np.zeros((2, 2, 2)))
    vis.close()
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and out.startswith("visdom failed (AssertionError") and not err
