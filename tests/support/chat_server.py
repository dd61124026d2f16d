"""A small server that speaks /chat/completions and /models, and answers that it may give."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(text, finish_reason="stop"):
    """A reply of /chat/completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def obedient(payload, number):
    """As many prompts as the instruction asks for, with its words."""
    text = payload["messages"][0]["content"]
    count = int(re.search(r"Write (\d+)", text)[1])
    words = re.findall(r'"([^"]+)"', text.splitlines()[1])
    start = re.search(r'Begin every prompt with "(.*)"', text)[1]
    return chat("\n".join(f"{n}. {start} {' '.join(words)} no. {number} {n}" for n in range(1, count + 1)))


class Server:
    """A server on this machine. ``reply(payload, number)`` gives (status, body) of a chat, ``models()`` of the list."""

    def __init__(self, reply, key=None, models=lambda: (404, b"")):
        self.payloads, self.headers, server = [], [], self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                allowed = not key or self.headers["Authorization"] == f"Bearer {key}"
                status, body = (404, b"") if self.path != "/v1/models" else models() if allowed else (401, b"who?")
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.payloads.append(payload)
                server.headers.append(self.headers)
                if self.path != "/v1/chat/completions":
                    status, body = 404, b'{"error": "no such path"}'
                elif key and self.headers["Authorization"] != f"Bearer {key}":
                    status, body = 401, b'{"error": "invalid key"}'
                else:
                    status, body = reply(payload, len(server.payloads) - 1)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
