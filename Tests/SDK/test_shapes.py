"""The OpenAI SDK and the real Codex CLI see the right text, exception or retry for each shape of an upstream's answer."""

import json
import os
import pathlib
import subprocess
import tempfile

import codex_cli_bin
import openai
import pytest
from conftest import Server
from shapes import CHAT, TEXT, serve

CODEX = pathlib.Path(codex_cli_bin.__file__).parent / "bin" / "codex"


@pytest.fixture()
def upstream():
    httpd = serve()
    yield httpd
    httpd.shutdown()


@pytest.fixture()
def server(upstream):
    server = Server(f"http://127.0.0.1:{upstream.server_port}/v1")
    yield server
    server.stop()


def client(server):
    return openai.OpenAI(api_key="unused", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0)


@pytest.mark.parametrize("model", ["good", "ping", "unended", "done", "packed-good", "slow-good"])
def test_sdk_response_stream(server, model):
    with client(server).responses.stream(model=model, input="hi") as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == TEXT
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    row = server.requests(1)[0]
    assert (row["status"], row["error_code"] or "", row["input_tokens"], row["output_tokens"]) == (200, "", 3, 4)


@pytest.mark.parametrize("model", ["context", "flat"])
def test_sdk_response_failure(server, model):
    kinds = [event.type for event in client(server).responses.create(model=model, input="hi", stream=True)]
    assert kinds == ["response.created", "response.failed"]
    assert server.requests(1)[0]["error_code"] == {"context": "context_length_exceeded", "flat": "server_error"}[model]


@pytest.mark.parametrize("model", [name for name in CHAT if name != "broken"] + ["packed-good", "slow-good"])
def test_sdk_chat_stream(server, model):
    chunks = list(client(server).chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    row = server.requests(1)[0]
    assert row["status"] == 200 and row["error_code"] in (None, "", "usage_estimated")
    assert (row["error_code"] == "usage_estimated") == (model == "unended")


def test_sdk_chat_failure(server):
    with pytest.raises(openai.APIError) as caught:
        list(client(server).chat.completions.create(model="broken", messages=[{"role": "user", "content": "hi"}], stream=True))
    assert caught.value.code == "server_error"
    assert server.requests(1)[0]["error_code"] == "server_error"


def codex(server, model):
    """Runs Codex once; its exit code and events."""
    with tempfile.TemporaryDirectory(prefix="clb-codex-", dir="/tmp") as home:
        pathlib.Path(home, "config.toml").write_text(
            f'model = "{model}"\nmodel_provider = "lb"\n[model_providers.lb]\nname = "codex-lb"\n'
            f'base_url = "http://127.0.0.1:{server.port}/v1"\nwire_api = "responses"\nstream_max_retries = 2\nrequest_max_retries = 1\n'
        )
        done = subprocess.run(
            [CODEX, "exec", "--skip-git-repo-check", "--json", "say ping"],
            env={**os.environ, "CODEX_HOME": home, "HOME": home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=home,
        )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    texts = [e["item"].get("text") for e in events if e["type"] == "item.completed" and e["item"]["type"] == "agent_message"]
    failures = [e["error"]["message"] for e in events if e["type"] == "turn.failed"]
    return done.returncode, texts, failures


@pytest.mark.parametrize("model, calls", [("good", 1), ("ping", 1), ("unended", 1), ("packed-good", 1), ("slow-good", 1), ("once-flat", 2)])
def test_codex(server, upstream, model, calls):
    """A failure in the middle is Codex's to repeat, with its own words and once; the others it doesn't notice."""
    assert codex(server, model) == (0, [TEXT], [])
    assert len(upstream.seen[model]) == calls == len(server.requests(calls))


def test_codex_request_fault(server, upstream):
    code, texts, failures = codex(server, "context")
    assert code != 0 and not texts and "context window" in failures[0]
    assert len(upstream.seen["context"]) == 1, "repeating would not help"
    code, texts, failures = codex(server, "400-invalid_prompt")
    assert code != 0 and not texts and "scripted" in failures[0]
    assert len(upstream.seen["400-invalid_prompt"]) == 1


def test_codex_never_sees_a_limited_account(server, upstream):
    server.run("accounts", "add", "two", "--base-url", server.upstream, "--key-file", "-", stdin="sk-second\n")
    for _ in range(100):  # the running server knows of it within a moment
        if json.loads(server.run("ctl", "status", "--json")) and "two" in server.run("accounts", "list"):
            break
    assert codex(server, "first-limit") == (0, [TEXT], [])
    assert len(upstream.seen["first-limit"]) == 2
    assert server.requests(1)[0]["attempts"] == 2
