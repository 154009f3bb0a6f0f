"""Starts codex-lb with its demo upstream and a scripted one, for tests with the official OpenAI SDK."""

import http.server
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time

import pytest

BINARY = os.environ.get("CODEX_LB_TEST_BINARY") or os.path.join(os.path.dirname(__file__), "../../.build/debug/codex-lb")


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with the status and error that the model's name asks for: `fail-429-rate_limit_exceeded`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, status, code = body["model"].split("-", 2)
        answer = json.dumps({"error": {"message": f"scripted {code}", "type": "scripted_error", "code": code, "param": None}}).encode()
        self.send_response(int(status))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server:
    """One running codex-lb with a data directory of its own."""

    def __init__(self, upstream_url):
        self.directory = tempfile.mkdtemp(prefix="clb-sdk-", dir="/tmp")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("CODEX_LB_")}
        self.env["CODEX_LB_DATA_DIR"] = self.directory
        self.upstream = upstream_url
        if upstream_url:
            self.run("accounts", "add", "one", "--base-url", upstream_url, "--key-file", "-", stdin="sk-upstream-secret\n")
        self.log = open(os.path.join(self.directory, "log"), "w+")
        self.process = subprocess.Popen([BINARY, "serve", "--listen", "127.0.0.1:0", "--workers", "1"], env=self.env, stderr=self.log)
        end = time.monotonic() + 30
        while True:
            text = open(self.log.name).read()
            found = re.search(r" ready .*listen=127\.0\.0\.1:(\d+)", text)
            if found:
                break
            assert self.process.poll() is None and time.monotonic() < end, text
            time.sleep(0.02)
        self.port = int(found.group(1))

    def run(self, *arguments, stdin=None):
        done = subprocess.run([BINARY, *arguments], env=self.env, input=stdin, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def requests(self, count):
        """The newest records, once there are at least `count`."""
        end = time.monotonic() + 5
        while True:
            rows = json.loads(self.run("requests", "--json", "--last", "1000"))
            if len(rows) >= count:
                return rows
            assert time.monotonic() < end, rows
            time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        code = self.process.wait(40)
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        assert code == 0


@pytest.fixture(scope="session")
def demo():
    upstream = subprocess.Popen([BINARY, "demo-upstream", "--interval-ms", "1"], stdout=subprocess.PIPE, text=True)
    assert select.select([upstream.stdout], [], [], 30)[0]
    url = re.search(r"http://\S+", upstream.stdout.readline()).group(0)
    server = Server(url)
    yield server
    server.stop()
    upstream.terminate()
    upstream.wait(10)


@pytest.fixture(scope="session")
def login(demo):
    """A server whose one account is a ChatGPT login: everything is translated to Responses streams and back."""
    base = demo.upstream.removesuffix("/v1")
    server = Server(None)
    auth = os.path.join(server.directory, "auth.json")
    with open(auth, "w") as file:
        json.dump({"tokens": {"access_token": "at", "refresh_token": "rt", "id_token": "e30.e30.", "account_id": "acc"}}, file)
    server.run("accounts", "import", auth, "--name", "login", "--base-url", base)
    yield server
    server.stop()


@pytest.fixture()
def failing():
    """A server of its own for each test: an account that failed cools down."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    server = Server(f"http://127.0.0.1:{httpd.server_port}/v1")
    yield server
    server.stop()
    httpd.shutdown()
