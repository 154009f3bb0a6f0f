"""The official OpenAI Python SDK as a client of codex-lb: answers in its types, failures as its exceptions."""

import openai
import pytest

TEXT = "Hello from the demo upstream. These words are canned, the stream is real: each is one event"


def client(server, key="anything", **kwargs):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=key, max_retries=0, timeout=20, **kwargs)


def test_response(demo):
    response = client(demo).responses.create(model="demo-1", input="hi")
    assert response.output_text == TEXT and response.status == "completed"
    assert response.usage.input_tokens == 12 and response.usage.output_tokens == 20


def test_response_stream(demo):
    with client(demo).responses.stream(model="demo-1", input="hi") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 20
    assert final.output_text == TEXT


def test_response_create_stream(demo):
    text = "".join(e.delta for e in client(demo).responses.create(model="demo-1", input="hi", stream=True) if e.type == "response.output_text.delta")
    assert text == TEXT


def test_chat(demo):
    completion = client(demo).chat.completions.create(model="demo-1", messages=[{"role": "user", "content": "hi"}])
    assert completion.choices[0].message.content == TEXT and completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == 32


def test_chat_stream_without_usage_is_accounted_all_the_same(demo):
    before = len(demo.requests(0))
    chunks = list(client(demo).chat.completions.create(model="demo-1", messages=[{"role": "user", "content": "hi"}], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == TEXT
    assert all(c.choices for c in chunks)
    newest = demo.requests(before + 1)[0]
    assert newest["route"] == "/v1/chat/completions" and newest["output_tokens"] == 20 and newest["status"] == 200


def test_chat_stream_with_usage(demo):
    chunks = list(
        client(demo).chat.completions.create(
            model="demo-1", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 20


def test_embeddings_and_models(demo):
    assert client(demo).embeddings.create(model="demo-1", input="hi", encoding_format="float").data[0].embedding == [0.1, 0.2, 0.3]
    assert [m.id for m in client(demo).models.list()] == ["demo-1"]


def test_each_turn_has_one_record(demo):
    before = len(demo.requests(0))
    for _ in range(5):
        client(demo).responses.create(model="demo-1", input="hi")
    rows = demo.requests(before + 5)
    assert len(rows) == before + 5
    assert {(r["account"], r["model"], r["attempts"], r["input_tokens"], r["cached_input_tokens"]) for r in rows[:5]} == {("one", "demo-1", 1, 12, 4)}


def test_bad_request(demo):
    with pytest.raises(openai.BadRequestError) as caught:
        client(demo).post("/responses", body={"input": "no model"}, cast_to=object)
    assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client(demo).post("/nowhere", body={}, cast_to=object)


@pytest.mark.parametrize(
    "model, exception",
    [
        ("fail-400-invalid_value", openai.BadRequestError),
        ("fail-401-invalid_api_key", openai.AuthenticationError),
        ("fail-403-unsupported_country", openai.PermissionDeniedError),
        ("fail-404-model_not_found", openai.NotFoundError),
        ("fail-409-conflict", openai.ConflictError),
        ("fail-422-unprocessable", openai.UnprocessableEntityError),
        ("fail-429-rate_limit_exceeded", openai.RateLimitError),
        ("fail-500-server_error", openai.InternalServerError),
        ("fail-503-overloaded", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_upstream_errors(failing, model, exception, stream):
    with pytest.raises(exception) as caught:
        client(failing).responses.create(model=model, input="hi", stream=stream)
    assert caught.value.code == model.split("-", 2)[2]
    row = failing.requests(1)[0]
    assert row["error_code"] == model.split("-", 2)[2] and row["attempts"] == (3 if "500" in model else 1)


def test_whole_pool_limited(failing):
    with pytest.raises(openai.RateLimitError):
        client(failing).responses.create(model="fail-429-rate_limit_exceeded", input="hi")
    with pytest.raises(openai.RateLimitError) as caught:
        client(failing).responses.create(model="fail-200-never-asked", input="hi")
    assert caught.value.code == "usage_limit_reached"
    assert int(caught.value.response.headers["retry-after"]) <= 30


def test_no_active_account(failing):
    failing.run("accounts", "pause", "one")
    deadline = 50
    while True:
        with pytest.raises(openai.APIStatusError) as caught:
            client(failing).responses.create(model="fail-418-teapot", input="hi")
        if caught.value.code == "no_accounts" or deadline == 0:
            break
        deadline -= 1
    assert caught.value.code == "no_accounts" and caught.value.status_code == 503


def wait_for_account(server):
    """The account was added while the server ran: it is used within a second."""
    for _ in range(100):
        try:
            return client(server).responses.create(model="demo-1", input="hi")
        except openai.InternalServerError as error:
            assert error.code == "no_accounts"
    raise AssertionError("the account is not used")


def test_login_response(login):
    response = wait_for_account(login)
    assert response.output_text == TEXT and response.status == "completed" and response.usage.output_tokens == 20
    with client(login).responses.stream(model="demo-1", input="hi") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and final.output_text == TEXT


def test_login_chat(login):
    wait_for_account(login)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    completion = client(login).chat.completions.create(model="demo-1", messages=messages)
    assert completion.choices[0].message.content == TEXT and completion.usage.total_tokens == 32
    chunks = list(client(login).chat.completions.create(model="demo-1", messages=messages, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 32


def test_client_key(demo):
    # The last test of this server: from the first key on everybody needs one.
    key = demo.run("keys", "create", "sdk", "--models", "demo-1").strip()
    assert client(demo, key).responses.create(model="demo-1", input="hi").output_text == TEXT
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client(demo, key).responses.create(model="other", input="hi")
    assert caught.value.code == "model_not_allowed"
    with pytest.raises(openai.AuthenticationError) as caught:
        client(demo, "sk-clb-wrong").responses.create(model="demo-1", input="hi")
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        client(demo).responses.create(model="demo-1", input="hi")
