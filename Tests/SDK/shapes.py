"""An upstream whose answers have the shapes that real ones have; the model's name chooses one."""

import gzip
import http.server
import json
import threading
import time

TEXT = "PONG from upstream"
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
CHAT_USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
ITEM = {
    "type": "message",
    "id": "m1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
}


def response(status, **more):
    return {"id": "r1", "object": "response", "created_at": 1, "status": status, "model": "m", "output": [], "error": None, **more}


def event(kind, **members):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def data(value):
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


def chunk(text=None, finish=None, **more):
    delta = {"content": text} if text else {}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return data({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more})


CREATED = event("response.created", sequence_number=0, response=response("in_progress"))
ADDED = event("response.output_item.added", sequence_number=1, output_index=0, item={**ITEM, "status": "in_progress", "content": []})
PART = event(
    "response.content_part.added", sequence_number=1, item_id="m1", output_index=0, content_index=0, part={"type": "output_text", "text": "", "annotations": []}
)
DELTA = event("response.output_text.delta", sequence_number=1, item_id="m1", output_index=0, content_index=0, delta=TEXT, logprobs=[])
DONE = event("response.output_item.done", sequence_number=2, output_index=0, item=ITEM)
COMPLETED = event("response.completed", sequence_number=3, response=response("completed", output=[ITEM], usage=USAGE))
GOOD = CREATED + ADDED + PART + DELTA + DONE + COMPLETED


def failed(code):
    return event("response.failed", sequence_number=1, response=response("failed", error={"code": code, "message": f"scripted {code}"}))


RESPONSES = {
    "good": GOOD,
    "ping": b"event: ping\n\n: hello\n\nretry: 3000\n\n" + GOOD,
    "unended": GOOD.rstrip(b"\n"),
    "done": GOOD + data("[DONE]"),
    "context": CREATED + failed("context_length_exceeded"),
    "flat": CREATED + event("error", code="server_error", message="scripted", param=None),
    "limit": failed("rate_limit_exceeded"),
}
CHAT = {
    "good": chunk(TEXT) + chunk(finish="stop") + chunk(None, None, usage=CHAT_USAGE) + data("[DONE]"),
    "undone": chunk(TEXT) + chunk(finish="stop", usage=CHAT_USAGE),
    "unended": chunk(TEXT) + chunk(finish="stop") + b"data: [DONE]",
    "broken": chunk(TEXT) + data({"error": {"message": "scripted", "type": "server_error", "code": "server_error"}}),
}


class Shapes(http.server.BaseHTTPRequestHandler):
    """`good`, `packed-good`, `slow-good`, `once-flat` (then good), `first-limit` (one account's, then good), `400-code`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(404, "application/json", b"{}")

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        key = self.headers["Authorization"]
        name = body["model"]
        seen = self.server.seen.setdefault(name, [])
        seen.append(key)
        way, _, shape = name.rpartition("-")
        if way.isdigit():
            return self.answer(int(way), "application/json", json.dumps({"error": {"message": "scripted", "type": "x", "code": shape}}).encode())
        if way == "once" and len(seen) > 1 or way == "first" and key != seen[0]:
            shape = "good"
        stream = (RESPONSES if self.path.endswith("/responses") else CHAT)[shape]
        if way == "slow":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Length", str(len(stream)))
            self.end_headers()
            self.wfile.flush()
            time.sleep(2)  # what a thinking model does: the head, then nothing for a while
            return self.wfile.write(stream)
        if way == "packed":
            return self.answer(200, "text/event-stream", gzip.compress(stream), "gzip")
        self.answer(200, "text/event-stream", stream)

    def answer(self, status, kind, body, coding=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def serve():
    """The server, with `seen`: for each model the `Authorization` of the requests that came."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shapes)
    httpd.seen = {}
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    return httpd
