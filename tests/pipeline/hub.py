"""A hub on this machine, with the answers that a test wants."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


class FakeHub:
    """Answers by path; everything else is not found."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.delay = 0.0
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                hub.asked.append(self.path)
                time.sleep(hub.delay)
                missing = (404, {"X-Error-Code": "RepoNotFound"}, b"")
                status, headers, body = hub.answers.get(self.path.partition("?")[0], missing)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    with contextlib.suppress(ConnectionError):  # a client that lost patience
                        self.wfile.write(body)

            do_GET = do_HEAD = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
