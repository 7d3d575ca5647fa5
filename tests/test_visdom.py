"""What the Visualizer shows on a real visdom server, and what a bad server does to a run: nothing.

Delete this file and tests/visdom_server.py with utils/visdom_client.py.
"""

import base64
import html
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import visdom
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from tests.helpers import SMALL, wait_until
from tests.visdom_server import visdom_server
from utils import checkpoint, visdom_client
from utils.metrics import METRICS
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

    def lines(self, env: str, name: str) -> dict[str, tuple[list[float], list[float]]]:
        """The curves of a chart, without what only makes them equally long."""
        found = {}
        for line in self.window(env, name)["content"]["data"]:
            xs, ys = values(line["x"]), values(line["y"])
            points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and y == y]
            found[line["name"]] = [x for x, _ in points], [y for _, y in points]
        return found

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


def test_train_and_val_share_a_chart(vis, env, pages):
    vis.plot("loss", 3.0, x=5, line="train")
    vis.plot("loss", 2.0, x=5, line="val")
    vis.plot("loss", 1.0, x=10, line="train")
    vis.close()
    assert pages.lines(env, "loss") == {"train": ([5, 10], [3, 1]), "val": ([5], [2])}


def test_histograms_layers_tables_drawings_and_photos_arrive(vis, env, pages):
    evil = "<script>alert(1)</script>"
    vis.histogram(
        "sure", {"right": np.array([0.1, 0.9, 0.9]), evil: np.array([])}, 3, limits=(0, 1)
    )
    vis.layers("weights", {"head": torch.ones(10), "body": torch.zeros(5)}, 3)
    vis.table("classes", [("class", "train"), (evil, 7)])
    vis.svg("graph", "<svg width='9'><text>conv</text></svg>")
    vis.photo("mistakes", Image.new("RGB", (40, 20), (200, 0, 0)), 3)
    vis.close()
    right, other = pages.window(env, "sure")["content"]["data"]
    assert (right["name"], sum(values(right["y"]))) == ("right", 3)
    assert (other["name"], sum(values(other["y"]))) == (html.escape(evil), 0)
    (rows,) = pages.window(env, "weights")["content"]["data"]
    assert np.array(rows["z"]).sum(axis=1).tolist() == [1, 0]  # all are 1; zeros have no logarithm
    text = pages.window(env, "classes")["content"]
    assert evil not in text and "&lt;script&gt;alert(1)&lt;/script&gt;</td><td>7</td>" in text
    assert "conv" in pages.window(env, "graph")["content"]
    assert pages.image(env, "mistakes").shape == (20, 40, 3)


def test_a_training_shows_all_of_it(pages, port, env, pictures, tmp_path, caplog, capfd):
    caplog.clear()
    run = train(pictures, tmp_path, port, env=env, histograms=True)
    assert not caplog.records and not capfd.readouterr().err  # nothing of visdom's own messages
    assert_complete(run, pages, env)
    windows = {"options", "classes", "picture sizes", "autograd graph", "weights", "gradients"}
    windows |= {"first train batch", "first val batch", "confusion", "confidence", "probability"}
    assert not [name for name in windows if pages.window(env, name) is None]


def assert_complete(run: Path, pages: Pages, env: str) -> None:
    """Each point of a run's event files is on the server, once and in order."""
    events = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("final/")]
    smoothed = "objective/train" in tags
    assert len(tags) == 5 + 2 + len(METRICS) + smoothed
    for tag in tags:
        chart, _, line = tag.rpartition("/")
        xs, ys = pages.curve(env, tag) if chart == "step" else pages.lines(env, chart)[line]
        points = events.Scalars(tag)
        assert xs == [point.step for point in points], tag
        assert ys == pytest.approx([point.value for point in points]), tag


def train(pictures: Path, root: Path, port: int, env: str = "default", **options) -> Path:
    options = {"batch_size": 21, "max_epoch": 2, "visdom_port": port, "env": env, **options}
    return main.train(train_data_root=pictures / "train", checkpoint_root=root, **SMALL | options)


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


class Proxy(ThreadingHTTPServer):
    """Stands between a run and a real server, and answers as `state` says.

    "works"; "mute": no answer; "slow": an answer after a while; "errors": the answer is 500.
    """

    daemon_threads = True

    def __init__(self, port: int, state: str) -> None:
        self.port, self.state, self.refused = port, state, 0
        super().__init__(("127.0.0.1", 0), Forward)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.state == "works" or self.server.state == "slow":
            time.sleep(0.2 if self.server.state == "slow" else 0)
            server = HTTPConnection("127.0.0.1", self.server.port)
            server.request("POST", self.path, body)
            answer = server.getresponse()
            text = answer.read()
            self.send_response(answer.status)
        elif self.server.state == "errors":
            self.server.refused += 1
            text = b"no"
            self.send_response(500)
        else:
            self.server.refused += 1
            self.close_connection = True
            while self.server.state == "mute":
                time.sleep(0.01)
            return
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def alone(pictures, tmp_path) -> Path:
    return train(pictures, tmp_path / "alone", port=1, max_epoch=3)


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(visdom_client, "SECONDS_TO_RETRY", 0.05)
    monkeypatch.setattr(visdom_client, "SECONDS_TO_ANSWER", 1.0)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (checkpoint.read(run / "last.pth")["model"] for run in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("state", ["mute", "slow", "errors"])
def test_a_bad_server_gets_everything_once_it_works_and_changes_no_bit(
    state, port, pages, env, pictures, tmp_path, alone, impatient, monkeypatch, capfd
):
    proxy = Proxy(port, state)
    callers = set()
    connect = HTTPConnection.connect

    def note(connection: HTTPConnection) -> None:
        callers.add(threading.current_thread())
        connect(connection)

    monkeypatch.setattr(HTTPConnection, "connect", note)
    epoch_done = main.Run.epoch_done

    def mend(run: main.Run, epochs: int, *parts: object) -> None:
        if epochs == 2:
            wait_until(lambda: proxy.refused or state == "slow")
            proxy.state = "works"
        epoch_done(run, epochs, *parts)

    monkeypatch.setattr(main.Run, "epoch_done", mend)
    capfd.readouterr()
    run = train(pictures, tmp_path, proxy.server_address[1], env=env, max_epoch=3)
    out, err = capfd.readouterr()
    assert callers and threading.main_thread() not in callers  # the loop never waits for it
    assert (out + err).count("does not answer") == (out + err).count("answers again")
    assert out.count("does not answer") == (state != "slow") and "Traceback" not in out + err
    assert_complete(run, pages, env)
    assert same_weights(run, alone)
    assert (run / "metrics.csv").read_text() == (alone / "metrics.csv").read_text()
    proxy.shutdown()


def test_a_server_started_late_gets_everything(
    pictures, tmp_path, env, alone, impatient, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    with ExitStack() as stack:
        started = change_in_epoch(
            2, lambda: stack.enter_context(visdom_server(port=free)), monkeypatch
        )
        run = train(pictures, tmp_path, free, env=env, max_epoch=3)
        assert started == [free]
        assert_complete(run, Pages(free), env)
    assert same_weights(run, alone)


@pytest.mark.parametrize("restarted_in", [2, 3])
def test_a_server_that_is_killed_and_restarted_gets_everything_again(
    restarted_in, pictures, tmp_path, env, alone, impatient, monkeypatch
):
    with ExitStack() as first, ExitStack() as second:
        port = first.enter_context(visdom_server())

        def restart() -> int:
            wait_until(lambda: Pages(port).window(env, "step/loss"))
            first.close()  # the new server has other files: it knows nothing
            return second.enter_context(visdom_server(port=port))

        restarted = change_in_epoch(restarted_in, restart, monkeypatch)
        run = train(pictures, tmp_path, port, env=env, max_epoch=3)
        assert restarted == [port]
        assert_complete(run, Pages(port), env)
    assert same_weights(run, alone)


def change_in_epoch(epoch: int, change: Callable, monkeypatch: pytest.MonkeyPatch) -> list:
    """Call `change` before an epoch is shown; return the list that takes its answer."""
    answers, epoch_done = [], main.Run.epoch_done

    def changing(run: main.Run, epochs: int, *parts: Any) -> None:
        if epochs == epoch:
            answers.append(change())
        epoch_done(run, epochs, *parts)

    monkeypatch.setattr(main.Run, "epoch_done", changing)
    return answers


def test_a_resumed_run_shows_the_points_of_before(pages, port, env, pictures, tmp_path):
    run = train(pictures, tmp_path, port=1, env=env, max_epoch=1)  # nothing is delivered
    main.train(resume=run, max_epoch=3, visdom_port=port)
    assert_complete(run, pages, env)
    assert pages.curve(env, "step/loss")[0] == [1, 3, 5]


def test_a_server_that_is_gone_at_the_end_costs_a_line_that_says_what_to_do(
    pictures, tmp_path, impatient, monkeypatch, capfd
):
    with ExitStack() as stack:
        port = stack.enter_context(visdom_server())

        def kill() -> None:
            wait_until(lambda: Pages(port).window("default", "step/loss"))
            stack.close()

        change_in_epoch(2, kill, monkeypatch)
        run = train(pictures, tmp_path, port)
    out, err = capfd.readouterr()
    assert out.count("visdom on port") == 2 and not err
    assert f"python main.py board --replay={run} shows it\n" in out


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
        out, err = capfd.readouterr()
        assert (
            out.startswith(f"visdom on port {port} does not answer (no answer in 2 s)") and not err
        )
        vis.close()


def test_a_call_that_visdom_refuses_costs_one_line(vis, env, pages, capfd):
    vis.vis.show("wrong", "line", Y=np.zeros((2, 2, 2)))
    vis.plot("loss", 1.0)
    vis.close()
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and out.startswith("visdom cannot show wrong (AssertionError")
    assert not err and pages.curve(env, "loss") == ([0], [1.0])
