"""Start visdom's server: its page in the browser shows the curves and pictures of your runs.

Only this machine can reach it, unless --host says otherwise. Once it has the files of its page, it
works without a network.
"""

import getpass
import os
import re
import signal
import socket
import sys
import time
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address
from pathlib import Path

from config import DefaultConfig
from utils.options import InputPath, UsageError


class Options(DefaultConfig):
    """The options of `board` besides those in config.py; --visdom-port is there."""

    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0: other machines, too, with a login
    assets: InputPath | None = None  # folder with the page's files or npm packages, if no network
    replay: InputPath | None = None  # folder of a run to show, from the files that it has written


SECONDS_TO_ANSWER = 10.0


class PortError(OSError):
    """Another program has the port."""


def run(opt: Options) -> None:
    """Serve until a signal comes; return at once if a visdom server has the port already."""
    from utils.board.page import prepare_page
    from utils.board.server import start_server
    from utils.signals import StopRequest

    if opt.visdom_port > 65535:
        raise UsageError(f"--visdom-port={opt.visdom_port}: the largest port is 65535")
    address = f"http://{f'[{opt.host}]' if ':' in opt.host else opt.host}:{opt.visdom_port}"
    if visdom_answers(opt.host, opt.visdom_port):
        show_run(opt)
        print(f"a visdom server runs already: open {address}")
        return
    login = None if is_loopback(opt.host) else ask_login(opt.host)
    page = prepare_page(Path(opt.cache_root), opt.assets)
    folder = Path(opt.checkpoint_root) / "board"
    stopping = StopRequest(advice=f"; what the page showed is kept in {folder}")
    with stopping as stop, start_server(opt.host, opt.visdom_port, folder, page, login):
        show_run(opt)
        tell(address, opt.visdom_port, login)
        while True:
            stop.raise_if_received()
            time.sleep(0.2)


def show_run(opt: Options) -> None:
    """Put the run of --replay on the board."""
    if opt.replay:
        from utils.board.replay import replay

        print(f"{opt.replay} is in the environment {replay(Path(opt.replay), opt.visdom_port)}")


def tell(address: str, port: int, login: tuple[str, str] | None) -> None:
    """Print the address to open, and how to reach it from another machine."""
    host = socket.gethostname()
    print(f"open {address.replace('0.0.0.0', host).replace('[::]', host)}")
    print(f"from another machine: ssh -L {port}:127.0.0.1:{port} {user_name()}@{host}")
    if login:
        print("without TLS, the network can read the login: safer without --host, by ssh as above")
    sys.stdout.flush()


def user_name() -> str:
    """Return the name of this user; make one up where the system knows none, as visdom asks it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container that runs under a bare number
        return os.environ.setdefault("LOGNAME", "user")


def visdom_answers(host: str, port: int) -> bool:
    """Return whether a visdom server has the port. Raises PortError if another program has it."""
    connection = HTTPConnection(host, port, timeout=SECONDS_TO_ANSWER)  # it uses no proxy
    try:
        connection.connect()
    except OSError:
        return False
    try:
        connection.request("GET", "/")
        text = connection.getresponse().read(100_000).decode(errors="replace")
    except (OSError, HTTPException):
        text = ""
    finally:
        connection.close()
    if not re.search("<title>visdom( login)?</title>", text, re.IGNORECASE):
        raise PortError(f"another program uses port {port}: name a free one by --visdom-port=")
    return True


def is_loopback(host: str) -> bool:
    """Return whether this machine alone can reach the address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        raise UsageError(f"--host={host} is no address of this machine") from None
    return all(ip_address(address[0]).is_loopback for *_, address in found)


def ask_login(host: str) -> tuple[str, str]:
    """Return a user name and a password, from the environment or from the terminal."""
    name, password = os.environ.get("VISDOM_USERNAME"), os.environ.get("VISDOM_PASSWORD")
    if not (name and password):
        reason = f"--host={host} lets other machines in, so it needs a login"
        if not (sys.stdin and sys.stdin.isatty()):
            raise UsageError(f"{reason}: set VISDOM_USERNAME and VISDOM_PASSWORD")
        print(reason)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # so getpass shows typing again
        name = name or input("user name: ")
        password = password or getpass.getpass("password: ")
        if not (name and password):
            raise UsageError("the user name and the password cannot be empty")
    return name, password
