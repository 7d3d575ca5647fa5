"""visdom's server, with a guard at its door, and environments that outlive it."""

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import ErrorHandler, decode_signed_value
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from utils import run_folder
from utils.files import write_text

LOCAL_NAMES = r"localhost|127(\.\d+){3}|\[::1\]"  # what a browser calls its own machine


class ServerError(OSError):
    """The server cannot start. The message is one line that says what to do."""


@contextmanager
def start_server(
    host: str, port: int, folder: Path, page: Path, login: tuple[str, str] | None
) -> Iterator[None]:
    """Let a server listen inside the `with` block; save what it shows on leaving.

    folder: of the saved environments. page: the files of the page. login: name and password.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(folder, print):  # two servers would overwrite each other's environments
        app = make_app(port, folder, page, login)
        try:
            sockets = bind_sockets(port, host)
        except OSError as error:
            reason = f"cannot listen on {host}, port {port} ({error.strerror})"
            raise ServerError(f"{reason}: try another --visdom-port=") from None
        loop = asyncio.new_event_loop()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            HTTPServer(app, max_buffer_size=2**30).add_sockets(sockets)
            loop.run_forever()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            save(app.state, folder)


def make_app(port: int, folder: Path, page: Path, login: tuple[str, str] | None) -> Any:
    """Return visdom's application with a guard at its door."""
    # visdom 0.3 loads it, in seconds, for a plot that only its client draws.
    sys.modules.setdefault("openTSNE", None)  # type: ignore[arg-type]
    from visdom.server import app as visdom_app
    from visdom.server.handlers.base_handlers import BaseWebSocketHandler
    from visdom.utils.server_utils import hash_password

    # Wrong requests, and a style sheet of the user that is not there; the server's errors stay.
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("tornado.general").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: record.module != "base_handlers")

    class Board(visdom_app.Application):
        def find_handler(self, request: Any, **options: Any) -> Any:
            """Refuse strangers, before visdom sees what they send: its websockets ask no login."""
            allowed = not is_foreign(request, local=not login)
            if login and request.path != "/" and not request.path.startswith("/static/"):
                allowed = allowed and has_login(request, self.settings["cookie_secret"])
            if allowed:
                return super().find_handler(request, **options)
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    BaseWebSocketHandler.write_message = write_to_page  # type: ignore[method-assign,assignment]
    # autoreload would start the server anew whenever a file of the project is changed
    visdom_app.tornado_settings |= {"static_path": str(page.resolve()), "autoreload": False}
    # Eagerly: visdom 0.2 writes "null" over environments that it has not loaded.
    app = Board(port=port, env_path=str(folder), eager_data_loading=True)
    if login:
        name, password = login
        sent = hashlib.sha256(password.encode()).hexdigest()  # what the login page sends
        app.user_credential = {"username": name, "password": hash_password(sent)}
        app.login_enabled = True
        # The login is a part of the key, so that a new password ends old sessions.
        app.settings["cookie_secret"] = read_secret(folder / "cookie_secret") + name + password
    return app


def write_to_page(page: Any, message: Any, binary: bool = False) -> Any:
    """Send a message to a page, if it is open: else visdom answers a training with an error."""
    try:
        sending = WebSocketHandler.write_message(page, message, binary)
    except WebSocketClosedError:
        return None
    sending.add_done_callback(lambda task: task.cancelled() or task.exception())  # not reported
    return sending


def is_foreign(request: Any, local: bool) -> bool:
    """Return whether a page of another site sends this request, from the user's browser.

    local: only this machine is served, so any other name for it is a trick (DNS rebinding).
    """
    origin = request.headers.get("Origin", f"http://{request.host}")
    renamed = local and not re.fullmatch(LOCAL_NAMES, request.host_name)
    return renamed or origin.partition("://")[2] != request.host


def has_login(request: Any, secret: str) -> bool:
    """Return whether a request has the cookie that visdom gives for the right password."""
    cookie = request.cookies.get("user_password")
    return bool(cookie and decode_signed_value(secret, cookie.key, cookie.value))


def save(state: dict[str, dict], folder: Path) -> None:
    """Write each environment into its file, where the next server finds it."""
    for name, environment in state.items():
        file = folder / (re.sub(r"[/\\]", "_", name) + ".json")
        try:
            write_text(file, json.dumps(environment))
        except OSError as error:
            print(f"{file} cannot be written: {error.strerror}", file=sys.stderr)


def read_secret(file: Path) -> str:
    """Return the text that signs the cookies of a login; make it if there is none yet."""
    if not file.exists():
        old_mask = os.umask(0o077)  # no other user may read it
        try:
            write_text(file, secrets.token_hex(32))
        finally:
            os.umask(old_mask)
    return file.read_text(encoding="utf-8")
