"""A real visdom server for tests, on a free loopback port and without a network."""

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# `python -m visdom.server` first downloads the scripts of its page; this server does not.
# visdom 0.3 takes another port if the given one is in use, so the server prints its port.
SERVER = """
import sys
from visdom.server.run_server import start_server

start_server(
    port=int(sys.argv[1]),
    env_path=sys.argv[2],
    base_url="",  # the default "/" doubles every slash; visdom's own main() passes "" too
    bind_local=True,
    print_func=lambda port: print("listening on", port, flush=True),
)
"""


@contextmanager
def visdom_server(timeout: float = 60, port: int | None = None) -> Iterator[int]:
    """Yield the port of a fresh server once it listens; kill the server at the end.

    Raises RuntimeError with the end of its log if it does not start within `timeout` seconds.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free_port = port or probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.log")  # a file, since a full pipe would stop the server
        with log.open("w") as out:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(free_port), str(Path(folder, "envs"))],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + timeout
            while not (listening := re.search(r"^listening on (\d+)$", log.read_text(), re.M)):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"visdom did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield int(listening[1])
        finally:
            server.kill()
            server.wait()
