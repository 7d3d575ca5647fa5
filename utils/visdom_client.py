"""A client of a visdom server on this machine. To remove it: delete this file and its tests."""

import logging
import socket

SECONDS_TO_ANSWER = 5.0


def connect(env: str, port: int) -> object:
    """Return a visdom client. Raises ConnectionRefusedError if nothing listens on `port`."""
    socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    import requests  # slow to import, as visdom is, so only if there is a server
    import visdom

    session = requests.Session()
    session.trust_env = False  # ignore http_proxy: a proxy cannot reach this machine's own server
    logging.getLogger("visdom").setLevel(logging.ERROR)  # it warns of use_incoming_socket=False

    class Client(visdom.Visdom):
        def _handle_post(self, url: str, data: str | None = None) -> str:
            try:
                return session.post(url, data=data, timeout=SECONDS_TO_ANSWER).text
            except OSError:  # visdom would print the one of requests
                raise OSError(f"no answer from port {port}") from None

    return Client("http://127.0.0.1", port=port, env=env, use_incoming_socket=False)
