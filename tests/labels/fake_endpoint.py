"""A local endpoint that is slow, overloaded, wordy or rude."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


IDS = [f"p{number}" for number in range(20)]
USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}


def completion(text=r"\boxed{7}", ending="stop", usage=USAGE, **message):
    choice = {"index": 0, "finish_reason": ending, "message": {"role": "assistant", "content": text, **message}}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Endpoint:
    """
    Answers `What is n?` with n + 1. `behave` may say otherwise for the number of the request: a status with a text or
    a whole body; or to drop the connection, to answer late, or to answer drop by drop.
    """

    def __init__(self):
        self.requests, self.times, self.behave = [], [], lambda number, request: None
        self.keys, self.echoes, self.is_over = set(), False, threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(request)
                endpoint.times.append(time.monotonic())
                endpoint.keys.add(self.headers["Authorization"])
                behaviour = endpoint.behave(len(endpoint.requests), request)
                if behaviour == "drop":
                    return self.connection.close()
                if behaviour == "late":
                    endpoint.is_over.wait(20)
                    return self.connection.close()
                if behaviour == "drip":
                    return self.drip()
                status, text = behaviour or (200, None)
                if text is None:
                    number = int(request["messages"][-1]["content"].split()[-1].strip("?"))
                    text = rf"Let me think. \boxed{{{number + 1}}}"
                body = text
                if isinstance(text, str) and status != 200:
                    body = {"error": {"message": text}}
                elif isinstance(text, str) and "gateway" not in text:
                    body = completion(text)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status, self.headers["Authorization"] if endpoint.echoes else None)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Retry-After", "0.01")
                if endpoint.echoes:
                    self.send_header("X-Echo", self.headers["Authorization"])
                self.end_headers()
                self.wfile.write(data)

            def drip(self):
                """Each byte comes in time; the whole never does."""
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                for _ in range(200):
                    if endpoint.is_over.wait(0.05):
                        break
                    try:
                        self.wfile.write(b" ")
                        self.wfile.flush()
                    except OSError:
                        break

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
