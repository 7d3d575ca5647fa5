"""Downloads from a server that breaks off, hangs, lies and changes its files."""

import hashlib
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import OxfordIIITPet

from utils.preparation import download, sources
from utils.preparation.download import DownloadError

OLD, NEW = (random.Random(seed).randbytes(700_000) for seed in (1, 2))
MD5 = hashlib.md5(OLD).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """One request, answered by the next function of the server's script."""

    server: "Server"

    def do_GET(self) -> None:
        server = self.server
        server.ranges.append(self.headers["Range"])
        server.paths.append(self.path)
        server.look()
        answer = server.script.pop(0) if server.script else whole
        answer(self)

    def asked(self) -> int | None:
        """Return from which byte on the file is asked for, None for all of it."""
        range_, condition = self.headers["Range"], self.headers["If-Range"]
        if range_ is None or condition not in (None, self.server.version):
            return None
        return int(re.fullmatch(r"bytes=(\d+)-", range_)[1])

    def send(self, code: int, data: bytes, length: int | None = None, **headers: str) -> None:
        """Answer with bytes; length: how many are announced."""
        self.send_response(code)
        if self.server.version:
            headers = {self.server.version_header: self.server.version} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        for start in range(0, len(data), 1 << 16):
            self.server.look()
            self.wfile.write(data[start : start + (1 << 16)])

    def send_part(self, start: int, data: bytes, **headers: str) -> None:
        """Answer with the file from `start` on, of which `data` comes."""
        total = len(self.server.contents)
        span = f"bytes {start}-{total - 1}/{total}"
        self.send(206, data, total - start, **{"Content_Range": span} | headers)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server of one file. It also watches that nothing unfinished has the file's final name."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server_port}/set.zip"
        self.path = path
        self.contents, self.version, self.version_header = OLD, '"1"', "ETag"
        self.script: list[Callable[[Answer], object]] = []  # for the first requests; then `whole`
        self.ranges: list[str | None] = []  # of each request
        self.paths: list[str] = []
        self.looks = [0, 0]  # how often the final name was not there, and there
        self.over = threading.Event()

    def look(self) -> None:
        self.looks[self.path.exists()] += 1

    def handle_error(self, *args: object) -> None:
        """Be silent about clients that hang up."""

    def download(self, md5: str | None = None) -> bytes:
        assert download.download(self.address, self.path, md5) == self.path
        return self.path.read_bytes()

    def failure(self, md5: str | None = None) -> str:
        """Return the line of a download that fails; nothing has the final name."""
        with pytest.raises(DownloadError) as caught:
            self.download(md5)
        line = str(caught.value)
        assert line.startswith(self.address) and line.isprintable()
        assert not self.path.exists()
        return line

    def part(self) -> bytes:
        return self.path.with_name("set.zip.partial").read_bytes()

    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAITS", (0,) * 5)
    monkeypatch.setenv("no_proxy", "*")
    server = Server(tmp_path / "downloads" / "set.zip")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()
    assert server.looks[1] == 0  # while there was still something to come


# What the server may do with a request.


def whole(answer: Answer) -> None:
    """Answer as it should be done: from the byte on that is asked for."""
    start, contents = answer.asked(), answer.server.contents
    if start is None:
        answer.send(200, contents)
    elif start >= len(contents):
        answer.send(416, b"", Content_Range=f"bytes */{len(contents)}")
    else:
        answer.send_part(start, contents[start:])


def broken_after(count: int, then: Callable[[Answer], object] = lambda answer: None):
    """Send that many bytes of what is asked for, and hang up."""

    def send(answer: Answer) -> None:
        start, contents = answer.asked(), answer.server.contents
        if start is None:
            answer.send(200, contents[:count], len(contents))
        else:
            answer.send_part(start, contents[start : start + count])
        then(answer)

    return send


def hang(answer: Answer) -> None:
    answer.server.over.wait(30)


def code(number: int) -> Callable[[Answer], object]:
    return lambda answer: answer.send(number, b"sorry")


def no_range(answer: Answer) -> None:
    answer.send(200, answer.server.contents)


def another_file(after: Callable[[Answer], object] = whole) -> Callable[[Answer], object]:
    """Replace the file before the request is answered."""

    def change(answer: Answer) -> None:
        answer.server.contents, answer.server.version = NEW, '"2"'
        after(answer)

    return change


# Downloads that succeed.


def test_a_file_comes_byte_for_byte_with_one_request(server):
    assert server.download(MD5) == OLD
    assert server.ranges == [None]
    assert server.files() == ["set.zip"]
    assert server.looks[0] > 5  # the final name was looked for while the bytes came


def test_an_existing_file_is_not_asked_for_again(server):
    server.path.parent.mkdir()
    server.path.write_bytes(b"mine")
    assert server.download("0" * 32) == b"mine"
    assert server.ranges == [] and server.files() == ["set.zip"]


def test_an_empty_file_comes_empty(server):
    server.contents = b""
    assert server.download() == b""
    assert server.ranges == [None]


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
def test_a_broken_download_asks_only_for_what_it_lacks(server, header):
    server.version_header = header
    server.version = {"ETag": '"1"', "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}[header]
    server.script = [broken_after(100_000), broken_after(300_000), broken_after(1)]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, "bytes=100000-", "bytes=400000-", "bytes=400001-"]
    assert server.files() == ["set.zip"]


def test_a_part_need_not_say_again_when_the_file_was_changed(server):
    """HTTP lets the answer to If-Range leave Last-Modified out; an ETag has to be there."""

    def silent(answer: Answer) -> None:
        start = answer.asked()
        server.version_header = "X-Nothing"
        answer.send_part(start, OLD[start : start + 300_000])
        server.version_header = "Last-Modified"

    server.version_header, server.version = "Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT"
    server.script = [broken_after(100_000), silent]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, "bytes=100000-", "bytes=400000-"]


def test_a_connection_that_ends_before_the_first_byte_is_taken_up(server):
    server.script = [broken_after(0), lambda answer: None, broken_after(50), lambda answer: None]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, None, None, "bytes=50-", "bytes=50-"]


def test_a_file_without_a_version_is_begun_again(server):
    """Nothing would tell whether the rest belongs to the same file."""
    server.version = ""
    server.script = [broken_after(100_000), broken_after(650_000)]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, None, None]


def test_a_server_without_ranges_sends_all_again(server):
    server.script = [broken_after(100_000), no_range]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, "bytes=100000-"]


@pytest.mark.parametrize("number", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(server, number):
    server.script = [code(number), broken_after(100_000), code(number)]
    assert server.download(MD5) == OLD
    assert server.ranges == [None, None, "bytes=100000-", "bytes=100000-"]


def test_the_waits_become_longer_and_are_told(server, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    server.script = [code(503)] * 5
    assert server.download(MD5) == OLD
    assert [sum(waited[n : n + 10]) for n in range(0, 50, 10)] == pytest.approx([1, 2, 4, 8, 16])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 5
    assert all(line.startswith(server.address) and "503" in line for line in out)
    assert out[3].endswith(" 8 s")


def test_a_redirection_is_followed_each_time(server):
    def elsewhere(answer: Answer) -> None:
        answer.send(302, b"", Location="/mirror/set.zip")

    server.script = [elsewhere, broken_after(100_000), elsewhere]
    assert server.download(MD5) == OLD
    assert server.paths == ["/set.zip", "/mirror/set.zip"] * 2
    assert server.ranges == [None, None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize("sent", [0, 300_000])
def test_a_server_that_hangs_is_asked_again(server, monkeypatch, sent):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.script = [broken_after(sent, then=hang) if sent else hang]
    assert server.download(MD5) == OLD
    first, second = server.ranges
    assert first is None
    if sent:  # what had come when the time was over may be thrown away, but not all of it
        assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= sent
    else:
        assert second is None


def test_a_file_that_changes_between_two_attempts_is_the_new_one_throughout(server):
    server.script = [broken_after(100_000), another_file()]
    assert server.download() == NEW
    assert server.ranges == [None, "bytes=100000-"]
    assert server.files() == ["set.zip"]


def test_a_file_that_becomes_shorter_is_the_new_one_throughout(server):
    def shorter(answer: Answer) -> None:
        answer.server.contents, answer.server.version = NEW[:50_000], '"2"'
        whole(answer)

    server.script = [broken_after(100_000), shorter]
    assert server.download() == NEW[:50_000]


def test_the_rest_of_a_changed_file_is_not_added_to_the_old_part(server):
    """The server heeds Range but not If-Range."""

    def rest(answer: Answer) -> None:
        start = int(answer.headers["Range"][6:-1])
        answer.send_part(start, NEW[start:])

    server.script = [broken_after(100_000), another_file(rest)]
    assert server.download() == NEW


def test_a_part_that_was_not_asked_for_is_not_added(server):
    def another_part(answer: Answer) -> None:
        answer.send_part(200_000, OLD[200_000:])

    server.script = [broken_after(100_000), another_part]
    assert server.download() == OLD
    assert server.ranges == [None, "bytes=100000-", None]


def test_a_part_without_its_place_is_not_added(server):
    def nowhere(answer: Answer) -> None:
        answer.send(206, OLD[100_000:])

    server.script = [broken_after(100_000), nowhere]
    assert server.download() == OLD


def test_a_server_that_sends_less_than_is_asked_for_is_asked_for_the_rest(server):
    """Some send a large file in parts only: their answers are whole, the file is not."""

    def some(answer: Answer) -> None:
        start = answer.asked()
        span = f"bytes {start}-{start + 199_999}/{len(OLD)}"
        answer.send(206, OLD[start : start + 200_000], Content_Range=span)

    server.script = [broken_after(100_000), some, some]
    assert server.download() == OLD
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-", "bytes=500000-"]


def test_a_part_that_was_whole_already_becomes_the_file(server):
    """The run was killed after the last byte. There is no byte more to ask for."""
    server.script = [broken_after(699_999)] + [code(503)] * 5
    server.failure()
    partial = server.path.with_name("set.zip.partial")
    partial.write_bytes(partial.read_bytes() + OLD[-1:])
    assert server.download(MD5) == OLD
    assert server.files() == ["set.zip"]


# Downloads that fail.


@pytest.mark.parametrize("number", [400, 401, 403, 404, 410, 501])
def test_a_file_that_is_not_given_fails_at_once(server, number):
    server.script = [code(number)] * 9
    assert str(number) in server.failure()
    assert server.ranges == [None]
    assert server.files() == []


def test_what_has_come_stays_and_a_later_call_goes_on_from_it(server):
    server.script = [broken_after(100_000)] * 3 + [code(500)] * 3
    line = server.failure(MD5)
    assert "500" in line and "try again" in line
    assert len(server.ranges) == 6
    assert server.part() == OLD[:300_000]
    server.script = [broken_after(1)] * 6
    assert "300,006 of 700,000 bytes" in server.failure(MD5)
    assert server.part() == OLD[:300_006]
    server.ranges.clear()
    assert server.download(MD5) == OLD
    assert server.ranges == ["bytes=300006-"]
    assert server.files() == ["set.zip"]


def test_what_has_come_stays_when_the_file_is_gone_for_a_while(server):
    server.script = [broken_after(100_000), code(404)]
    server.failure(MD5)
    assert server.part() == OLD[:100_000]
    assert server.download(MD5) == OLD
    assert server.ranges[-1] == "bytes=100000-"


def test_a_part_is_of_no_use_when_the_file_changes_before_a_later_call(server):
    server.script = [broken_after(100_000)] + [code(503)] * 5
    server.failure()
    server.script = [another_file(broken_after(30_000))] + [code(503)] * 5
    server.failure()
    assert server.part() == NEW[:30_000]
    server.ranges.clear()
    assert server.download() == NEW
    assert server.ranges == ["bytes=30000-"]


@pytest.mark.parametrize("changed", [False, True])
def test_a_run_that_was_killed_before_the_first_byte_leaves_nothing_wrong(
    server, monkeypatch, changed
):
    server.script = [broken_after(100_000)] + [code(503)] * 5
    server.failure()
    server.script = [another_file()] if changed else []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "tqdm", interrupt)
        server.download()
    assert not server.path.exists()
    assert server.download() == (NEW if changed else OLD)


def interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_more_that_is_announced_than_sent_fails_and_names_both(server):
    def announce_more(answer: Answer) -> None:
        answer.send(200, OLD[:1000], 1200, ETag='"1"')

    server.version = ""
    server.script = [announce_more] * 6
    assert "1,000 of 1,200 bytes" in server.failure()
    assert len(server.ranges) == 6
    assert server.part() == OLD[:1000]
    server.version = '"1"'
    assert server.download(MD5) == OLD


def test_less_that_is_announced_than_sent_is_told_by_the_checksum(server):
    def announce_less(answer: Answer) -> None:
        answer.send(200, OLD, 600_000)

    server.script = [announce_less]
    line = server.failure(MD5)
    assert MD5 in line and server.ranges == [None]
    assert server.files() == []
    assert server.download(MD5) == OLD


def test_another_checksum_deletes_the_part_and_a_later_call_begins_again(server):
    server.contents = NEW
    server.script = [broken_after(100_000)]
    assert MD5 in server.failure(MD5)
    assert server.files() == []
    server.contents, server.version = OLD, '"2"'
    server.ranges.clear()
    assert server.download(MD5) == OLD
    assert server.ranges == [None]


def test_a_server_that_hangs_for_good_is_left_in_the_end(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.script = [hang] * 9
    assert "timed out" in server.failure()
    assert server.ranges == [None] * 6


def test_a_refused_connection_is_tried_again_and_named(server, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        server.address = f"http://127.0.0.1:{free.getsockname()[1]}/set.zip"
        assert "refused" in server.failure()
    assert capsys.readouterr().out.count(server.address) == 5
    assert server.files() == []


# Where data sets come from.


def test_the_address_and_the_checksum_of_the_pets_are_torchvisions():
    assert OxfordIIITPet._RESOURCES[0] == sources.OXFORD_PETS
