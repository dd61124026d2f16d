"""HTTP proxy that breaks answers by rules and records all requests, between a client and a test server."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit


@dataclass
class Rule:
    """Fault of the next ``times`` requests with this method whose path contains ``path``.

    Args:
        fault: ``cut`` closes the connection after ``after`` bytes of the body, ``stall`` waits there, ``drip`` sends
            ten bytes a second from there on, ``flip`` changes the byte there, ``lose`` closes the connection after
            the server has done its work, ``refuse`` before that, ``answer`` answers with ``status`` and ``code`` or
            ``body`` instead of the server, ``ignore`` hides conditions from the server.
    """

    fault: Literal["cut", "stall", "drip", "flip", "lose", "refuse", "answer", "ignore"]
    method: str = "GET"
    path: str = ""
    times: int = 1
    after: int = 0
    status: int = 503
    code: str = "SlowDown"
    body: str = ""


@dataclass
class Request:
    """Request that passed: with the server's status (0 if it did not get there) and the bytes of body sent back."""

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    status: int = 0
    sent: int = 0


class FaultyProxy:
    """Proxy before ``upstream``. Use as a context manager; append to ``rules``, read ``requests``."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.rules: list[Rule] = []
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, method: str, path: str = "") -> int:
        """Return the number of requests with this method whose path contains ``path``."""
        return sum(request.method == method and path in request.path for request in self.requests)

    def take_rule(self, request: Request) -> Rule | None:
        """Record a request and return the rule for it, which has one time less from then on."""
        with self._lock:
            self.requests.append(request)
            for rule in self.rules:
                if rule.times > 0 and rule.method == request.method and rule.path in request.path:
                    rule.times -= 1
                    return rule
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up on answers that stall."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, dict(self.headers.items()))
        rule = self.proxy.take_rule(request)
        if rule and rule.fault == "answer":
            self._answer_error(rule)
            return
        if rule and rule.fault == "refuse":
            self.close_connection = True
            return
        upstream = http.client.HTTPConnection(self.proxy.upstream.hostname, self.proxy.upstream.port, timeout=60)
        headers = {**request.headers, "Connection": "close"}
        if rule and rule.fault == "ignore":
            headers = {name: value for name, value in headers.items() if not name.lower().startswith("if-")}
        upstream.request(self.command, self.path, body, headers)
        reply = upstream.getresponse()
        data, request.status = reply.read(), reply.status
        upstream.close()
        if rule and rule.fault == "lose":
            self.close_connection = True
            return
        self._send(request, reply, data, rule)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _send(self, request: Request, reply: http.client.HTTPResponse, data: bytes, rule: Rule | None) -> None:
        self.send_response_only(reply.status)
        length = reply.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
        for name, value in reply.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if rule and rule.fault == "flip":
            data = data[: rule.after] + bytes([data[rule.after] ^ 255]) + data[rule.after + 1 :]
        part = data[: rule.after] if rule and rule.fault in ("cut", "stall", "drip") else data
        self.wfile.write(part)
        self.wfile.flush()
        request.sent = len(part)
        if len(part) < len(data):
            self.close_connection = True
            while rule and rule.fault == "drip" and not self.proxy.closing.wait(0.1):
                self.wfile.write(data[request.sent : request.sent + 1])
                request.sent += 1
            if rule and rule.fault == "stall":
                self.proxy.closing.wait(60)

    def _answer_error(self, rule: Rule) -> None:
        body = rule.body or f"<Error><Code>{rule.code}</Code></Error>"
        data = b"" if self.command == "HEAD" else body.encode()
        self.send_response_only(rule.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
