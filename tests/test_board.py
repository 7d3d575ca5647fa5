"""The command `board`: a visdom server that only its user can reach, also without a network.

The tests with a browser need Chromium, selenium and the files that tests/board_assets.sh gets, in
the folder that the environment variable DOGCAT_BOARD_ASSETS names. Delete this file and
tests/board_assets.sh with utils/commands/board.py and utils/board/page.txt.
"""

import hashlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import visdom

from tests.browser import asset_folder, open_browser, requested, wait_for
from tests.helpers import PROJECT, linux_only, posix_only
from tests.test_visdom import Pages, assert_complete, train, values
from utils import run_folder
from utils.board import page
from utils.commands.board import ask_login
from utils.options import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning:visdom")

# The command, with a page that lacks the files of other packages: they are not here in every test.
BARE_PAGE = """
import runpy, sys
from utils.board import page
page.needed_assets = lambda version: []
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""
LOGIN = {"VISDOM_USERNAME": "ada", "VISDOM_PASSWORD": "horse battery"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def command(root: Path, port: int, *options: str, program: tuple[str, ...]) -> list[str]:
    folders = [f"--checkpoint-root={root / 'runs'}", f"--cache-root={root / 'cache'}"]
    return [sys.executable, *program, "board", f"--visdom-port={port}", *folders, *options]


def environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("VISDOM_")} | more


def run_board(
    root: Path, port: int, *options: str, program: tuple = ("-c", BARE_PAGE), **env: str
) -> subprocess.CompletedProcess:
    """Run the command to its end."""
    return subprocess.run(
        command(root, port, *options, program=program),
        cwd=PROJECT,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


class Board:
    """A running command."""

    def __init__(self, port: int, process: subprocess.Popen, log: Path) -> None:
        self.port, self.process, self.log = port, process, log

    def request(self, method: str, path: str, body: object = None, **headers: str):
        """Return status, text and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        body = body if body is None else json.dumps(body)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    def socket_status(self, path: str, **headers: str) -> int:
        """Return the status with which a websocket is answered; 101 if it opens."""
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        return self.request("GET", path, **upgrade, **key, **headers)[0]

    def client(self, env: str, **options) -> visdom.Visdom:
        return visdom.Visdom(
            "http://127.0.0.1", port=self.port, env=env, use_incoming_socket=False, **options
        )

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal; return exit code and output."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30), self.log.read_text()


@contextmanager
def serving(
    root: Path, *options: str, program: tuple = ("-c", BARE_PAGE), **env: str
) -> Iterator[Board]:
    """Start the command, wait until it has told its address, and kill it at the end."""
    port, log = free_port(), root / "board.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command(root, port, *options, program=program),
            cwd=PROJECT,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while f":{port}" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield Board(port, process, log)
    finally:
        process.kill()
        process.wait()


def listening(pid: int) -> set[tuple[str, int]]:
    """List address (in hexadecimal digits) and port of the sockets on which a process listens."""
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = row.split()
            if state == "0A" and rest[5] in inodes:
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Board]:
    """A running command for tests that change nothing about it."""
    with serving(tmp_path_factory.mktemp("board")) as server:
        yield server


EVENT = {"data": [{"type": "text", "content": "hello"}], "win": "w", "eid": "main", "opts": {}}


# Who reaches it


@linux_only
def test_it_serves_this_machine_alone_and_ends_without_a_traceback(tmp_path):
    with serving(tmp_path) as server:
        assert listening(server.process.pid) == {("0100007F", server.port)}
        status, page, _ = server.request("GET", "/")
        assert status == 200 and "<title>visdom</title>" in page
        exit_code, output = server.stop(signal.SIGTERM)
    assert exit_code == 128 + signal.SIGTERM
    first, second, last = output.splitlines()
    assert first == f"open http://127.0.0.1:{server.port}"
    tunnel = rf"ssh -L {server.port}:127\.0\.0\.1:{server.port} \S+@{socket.gethostname()}$"
    assert re.search(tunnel, second)
    assert last == f"stopped by SIGTERM; what the page showed is kept in {tmp_path}/runs/board"
    assert run_folder.newest_run(tmp_path / "runs") is None


def test_a_second_command_tells_the_address_of_the_first(server, tmp_path):
    second = run_board(tmp_path, server.port)
    assert second.returncode == 0 and not second.stderr
    assert second.stdout == f"a visdom server runs already: open http://127.0.0.1:{server.port}\n"


def test_two_servers_do_not_share_their_environments(server):
    second = run_board(server.log.parent, free_port())
    assert second.returncode == 1 and not second.stdout
    assert second.stderr.startswith("another process is at work in")


def test_a_port_of_another_program_costs_one_line(tmp_path):
    handler = http.server.SimpleHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        port = other.server_address[1]
        result = run_board(tmp_path, port)
        other.shutdown()
    assert result.returncode == 1 and not result.stdout
    line = f"another program uses port {port}: name a free one by --visdom-port="
    assert result.stderr.splitlines()[-1].startswith(line)


def test_other_sites_in_the_same_browser_are_refused(server):
    own = {"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}
    tunnel = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}
    rebound = {"Host": f"evil.example:{server.port}"}
    foreign = [{"Origin": "https://evil.example"}, {"Origin": "null"}, rebound]
    foreign.append(rebound | {"Origin": f"http://evil.example:{server.port}"})
    for headers in ({}, own, tunnel):
        assert server.request("POST", "/events", EVENT, **headers)[:2] == (200, "w")
    for headers in foreign:
        assert server.request("POST", "/events", EVENT, **headers)[0] == 403
        assert server.request("POST", "/win_data", {"win": "w"}, **headers)[0] == 403
        for path in ("/socket", "/vis_socket"):
            assert server.socket_status(path, **headers) == 403
    assert server.request("GET", "/", **rebound)[0] == 403


def test_a_page_that_vanishes_is_no_error_for_the_sender(server):
    before = server.log.read_text()
    for _ in range(5):
        assert server.socket_status("/socket") == 101  # and is closed without a word
        for _ in range(5):
            assert server.request("POST", "/events", EVENT)[:2] == (200, "w")
    assert server.log.read_text() == before


# The login


def test_another_address_without_a_login_is_refused(tmp_path):
    result = run_board(tmp_path, free_port(), "--host=0.0.0.0")
    assert result.returncode == 2 and not result.stdout
    reason = "--host=0.0.0.0 lets other machines in, so it needs a login"
    assert result.stderr == f"{reason}: set VISDOM_USERNAME and VISDOM_PASSWORD\n"


def test_an_address_of_another_machine_is_refused(tmp_path):
    result = run_board(tmp_path, free_port(), "--host=192.0.2.1", **LOGIN)
    assert result.returncode == 1 and "cannot listen on 192.0.2.1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_login_is_asked_for_on_a_terminal(monkeypatch, capsys):
    for name in LOGIN:
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "ada")
    monkeypatch.setattr("getpass.getpass", lambda _: "horse battery")
    assert ask_login("0.0.0.0") == ("ada", "horse battery")
    monkeypatch.setattr("getpass.getpass", lambda _: "")
    with pytest.raises(UsageError, match="cannot be empty"):
        ask_login("0.0.0.0")
    signal.signal(signal.SIGINT, handler)


def log_in(server: Board, password: str) -> tuple[int, str]:
    """Log in as the page does; return the status and the cookie."""
    sent = hashlib.sha256(password.encode()).hexdigest()
    login = {"username": LOGIN["VISDOM_USERNAME"], "password": sent}
    status, _, headers = server.request("POST", "/", login)
    return status, (headers["Set-Cookie"] or "").partition(";")[0]


@linux_only
def test_nothing_is_open_without_the_login(tmp_path):
    with serving(tmp_path, "--host=0.0.0.0", **LOGIN) as server:
        assert listening(server.process.pid) == {("00000000", server.port)}
        assert "without TLS" in server.log.read_text()
        words = Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert LOGIN["VISDOM_PASSWORD"] not in words
        paths = ("/events", "/update", "/win_data", "/save", "/env_state", "/vis_socket_wrap")
        _, cookie = log_in(server, "horse batterie")
        for headers in ({}, {"Cookie": cookie}, {"Cookie": "user_password=2|1:0|forged|x"}):
            assert "<title>Visdom Login</title>" in server.request("GET", "/", **headers)[1]
            for path in ("/env/main", "/socket_wrap", "/compare/main"):
                assert server.request("GET", path, **headers)[0] == 403
            for path in paths:
                assert server.request("POST", path, EVENT, **headers)[0] == 403
            for path in ("/socket", "/vis_socket"):
                assert server.socket_status(path, **headers) == 403
        status, cookie = log_in(server, LOGIN["VISDOM_PASSWORD"])
        assert status == 200
        assert "<title>visdom</title>" in server.request("GET", "/", Cookie=cookie)[1]
        assert server.request("POST", "/events", EVENT, Cookie=cookie)[:2] == (200, "w")
        assert server.socket_status("/socket", Cookie=cookie) == 101
        foreign = {"Cookie": cookie, "Origin": "https://evil.example"}
        assert server.request("POST", "/events", EVENT, **foreign)[0] == 403
        login = {"username": LOGIN["VISDOM_USERNAME"], "password": LOGIN["VISDOM_PASSWORD"]}
        assert server.client("main", **login).text("hello", win="of the client")
        assert server.stop(signal.SIGINT)[0] == 128 + signal.SIGINT
    secret = tmp_path / "runs" / "board" / "cookie_secret"
    assert secret.stat().st_mode & 0o777 == 0o600 and len(secret.read_text()) == 64
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or LOGIN["VISDOM_PASSWORD"].encode() not in file.read_bytes()
    with serving(tmp_path, "--host=0.0.0.0", **LOGIN) as server:  # sessions outlive a restart
        assert "<title>visdom</title>" in server.request("GET", "/", Cookie=cookie)[1]
    other = LOGIN | {"VISDOM_PASSWORD": "another one"}
    with serving(tmp_path, "--host=0.0.0.0", **other) as server:  # but not a new password
        assert "<title>Visdom Login</title>" in server.request("GET", "/", Cookie=cookie)[1]


# What it keeps


@posix_only
def test_environments_are_there_again_after_a_restart(tmp_path):
    with serving(tmp_path) as server:
        vis = server.client("kept")
        vis.line(X=np.array([1.0, 2.0]), Y=np.array([3.0, 0.5]), win="loss")
        assert server.stop(signal.SIGINT)[0] == 128 + signal.SIGINT
    with serving(tmp_path) as server:
        assert Pages(server.port).curve("kept", "loss") == ([1, 2], [3, 0.5])
        vis = server.client("kept")
        vis.line(X=[3.0], Y=[0.25], win="loss", update="append")
        vis.save(["kept"])
        vis.line(X=[4.0], Y=[0.125], win="loss", update="append")
        server.stop(signal.SIGKILL)
    with serving(tmp_path) as server:  # what was saved is there, and no more
        assert Pages(server.port).curve("kept", "loss") == ([1, 2, 3], [3, 0.5, 0.25])


@posix_only
def test_a_broken_environment_does_not_stop_the_others(tmp_path):
    folder = tmp_path / "runs" / "board"
    folder.mkdir(parents=True)
    (folder / "broken.json").write_text('{"jsons": ')
    with serving(tmp_path) as server:
        assert server.request("POST", "/events", EVENT)[0] == 200
        server.request("POST", "/env/../../outside", {"eid": "../../outside"})
        server.stop(signal.SIGTERM)
    assert "hello" in (folder / "main.json").read_text()
    assert not [*tmp_path.rglob("outside*")]


# A run that trained while no server was there


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return train(pictures, root, port=1, histograms=True, label_smoothing=0.1)


def test_a_finished_run_is_shown_from_its_own_files(finished, tmp_path):
    with serving(tmp_path, f"--replay={finished}") as board:
        pages = Pages(board.port)
        assert_complete(finished, pages, env=finished.name)
        assert f"{finished} is in the environment {finished.name}\n" in board.log.read_text()
        for name in ("first train batch", "first val batch", "confusion"):
            assert pages.image(finished.name, name).std() > 10
        groups = pages.window(finished.name, "confidence")["content"]["data"]
        counts = {group["name"]: sum(values(group["y"])) for group in groups}
        assert counts["all"] == counts["right"] + counts["wrong"] == 18
        for name in ("weights", "gradients"):
            (heat,) = pages.window(finished.name, name)["content"]["data"]
            shares = dict(zip(heat["y"], np.array(heat["z"]).sum(axis=1), strict=True))
            assert shares["features.0.weight"] == pytest.approx(1, abs=0.05)  # few are in bin 0
            assert len(heat["x"]) == 40 and max(shares.values()) <= 1 + 1e-9
        table = pages.window(finished.name, "classes")["content"]
        assert "fir</td><td>21</td><td>9</td></tr>" in table and "---" not in table
        assert "<svg" in pages.window(finished.name, "autograd graph")["content"]


def test_a_run_is_shown_on_a_board_that_serves_already(server, finished, tmp_path):
    done = run_board(tmp_path, server.port, f"--replay={finished}")
    assert done.returncode == 0 and "runs already" in done.stdout, done.stderr
    assert_complete(finished, Pages(server.port), env=finished.name)


def test_a_folder_that_is_no_run_cannot_be_shown(tmp_path):
    done = run_board(tmp_path, free_port(), f"--replay={tmp_path}")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path} has no event files: give the folder of a run" in done.stderr


# The files of its page


CONTENTS = b"let answer = 42\n"
ASSETS = [
    page.Asset("js/a.js", "a@1.0.0/dist/a.min.js", hashlib.sha256(CONTENTS).hexdigest()),
    page.Asset("js/b.js", "b@2.0.0/b.js", hashlib.sha256(CONTENTS + b"b").hexdigest()),
]


@pytest.fixture
def few_assets(monkeypatch):
    monkeypatch.setattr(page, "needed_assets", lambda version: ASSETS)


@pytest.fixture
def registry(monkeypatch, tmp_path) -> Iterator[Path]:
    """A folder that is served as the registry is."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

        def translate_path(self, path: str) -> str:
            return f"{folder}/{path}"

    folder = tmp_path / "registry"
    for asset, contents in zip(ASSETS, (CONTENTS, CONTENTS + b"b"), strict=True):
        (folder / asset.source).parent.mkdir(parents=True)
        (folder / asset.source).write_bytes(contents)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(page, "REGISTRY", f"http://127.0.0.1:{server.server_address[1]}")
        yield folder
        server.shutdown()


def test_assets_of_the_network_are_used_if_their_digests_are_right(few_assets, registry, tmp_path):
    folder = page.prepare_page(tmp_path, None)
    assert (folder / "js" / "b.js").read_bytes() == CONTENTS + b"b"
    assert (folder / "js" / "main.js").exists() and (folder / "index.html").exists()
    (folder / "js" / "a.js").write_text("broken")
    page.prepare_page(tmp_path, None)  # gets it again
    assert (folder / "js" / "a.js").read_bytes() == CONTENTS
    shutil.rmtree(registry)
    page.prepare_page(tmp_path, None)  # needs no network any more


def test_nothing_is_used_if_one_digest_is_wrong(few_assets, registry, tmp_path, capsys):
    (registry / ASSETS[1].source).write_text("let answer = 43\n")
    with pytest.raises(page.PageError, match=r"b@2.0.0/b.js has a wrong SHA-256 digest"):
        page.prepare_page(tmp_path, None)
    with pytest.raises(page.PageError, match=r"lacks b@2.0.0/b.js \(no file has its SHA"):
        page.prepare_page(tmp_path, str(registry))
    assert capsys.readouterr().err == "where there is a network: npm pack b@2.0.0\n"
    assert not [*tmp_path.glob("visdom-*")]


def test_assets_are_found_in_folders_and_packages(few_assets, registry, tmp_path):
    packed = tmp_path / "packed"
    shutil.copytree(registry / "b@2.0.0", packed / "b" / "package")
    (registry / "a@1.0.0").rename(tmp_path / "package")
    archive = shutil.make_archive(str(packed / "a-1.0.0"), "gztar", tmp_path, "package")
    Path(archive).rename(packed / "a-1.0.0.tgz")
    folder = page.prepare_page(tmp_path, str(packed))
    assert (folder / "js" / "a.js").read_bytes() == CONTENTS


def test_without_a_network_it_says_what_to_do(tmp_path):
    started = time.monotonic()
    proxy = f"http://127.0.0.1:{free_port()}"  # where nothing is
    result = run_board(
        tmp_path, free_port(), program=("main.py",), https_proxy=proxy, HTTPS_PROXY=proxy
    )
    assert result.returncode == 1 and not result.stdout and time.monotonic() - started < 30
    packages, line = result.stderr.splitlines()
    assert packages.startswith("where there is a network: npm pack jquery@3.1.1 bootstrap@3.3.7 ")
    assert "cannot be read" in line and "add --assets=FOLDER" in line
    assert not [*tmp_path.rglob("*.js")]


# A browser


@pytest.fixture(scope="module")
def assets() -> str:
    return asset_folder()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with open_browser() as browser:
        yield browser


@posix_only
def test_the_page_shows_what_was_posted(assets, browser, tmp_path):
    own = Path(util.find_spec("visdom").origin).parent
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    with serving(tmp_path, f"--assets={assets}", program=("main.py",)) as server:
        vis, rng = server.client("shown"), np.random.default_rng(0)
        xs, ys = np.arange(5.0), rng.random(5)
        vis.line(X=xs, Y=ys, win="loss", opts={"title": r"$\sqrt{x}$"})
        vis.image(rng.random((3, 32, 48)), win="picture")
        list(requested(browser))
        browser.get(f"http://127.0.0.1:{server.port}/env/shown")
        plot = "document.querySelector('.js-plotly-plot')"
        line = json.loads(wait_for(browser, f"return {plot} && JSON.stringify({plot}.data[0])"))
        assert values(line["x"]) == xs.tolist() and values(line["y"]) == ys.tolist()
        sizes = "[...document.images].map(i => [i.naturalWidth, i.naturalHeight])"
        wait_for(browser, f"return {sizes}.some(([w, h]) => w == 48 && h == 32)")
        wait_for(browser, f"return {plot}.querySelector('.gtitle-math svg, svg.gtitle-math')")
        vis.line(X=[5.0], Y=[2.0], win="loss", update="append")  # comes through the websocket
        wait_for(browser, f"return {plot}.data[0].x.length == 6")
        browser.save_screenshot(str(tmp_path / "page.png"))
        addresses = [url for url in requested(browser) if not url.startswith("data:")]
        assert len(addresses) > 15
        assert {url.split("/")[2] for url in addresses} == {f"127.0.0.1:{server.port}"}
        exit_code, output = server.stop(signal.SIGTERM)
    assert exit_code == 128 + signal.SIGTERM and output.count("\n") == 3, output
    assert before == {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    # From now on it needs neither the folder nor a network.
    with serving(tmp_path, program=("main.py",), https_proxy="http://127.0.0.1:1") as server:
        browser.get(f"http://127.0.0.1:{server.port}/env/shown")
        wait_for(browser, f"return {plot} && {plot}.data[0].x.length == 6")


def test_the_page_takes_the_login(assets, browser, tmp_path):
    options = (f"--assets={assets}", "--host=0.0.0.0")
    with serving(tmp_path, *options, program=("main.py",), **LOGIN) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        for name, text in (("Username", "ada"), ("Password", LOGIN["VISDOM_PASSWORD"])):
            browser.find_element("id", f"input{name}").send_keys(text)
        browser.find_element("id", "submitButton").click()
        wait_for(browser, "return document.body.innerText.includes('online')")
        browser.save_screenshot(str(tmp_path / "logged_in.png"))
