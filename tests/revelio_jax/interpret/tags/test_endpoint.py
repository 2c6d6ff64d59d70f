"""Requests to the endpoint, and how failures and malformed answers are handled."""

import json
import threading

import pytest

from revelio_jax import chat_endpoint
from revelio_jax.chat_endpoint import RunStopped
from revelio_jax.config import TagsConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.tags import endpoint
from revelio_jax.interpret.tags.questions import Question

QUESTION = Question("applies", "Is it so?")


@pytest.fixture
def ask(server):
    """A function that asks the server one question, without long waits."""

    def once(answer, stop=None, first_wait=0.001, **fields):
        server.answer = answer
        options = TagsConfig(**{"endpoint": server.url, "model": "m"} | fields)
        return endpoint.open_endpoint(options, stop or threading.Event(), first_wait).ask(QUESTION)

    return once


def replied(content):
    return 200, json.dumps({"choices": [{"message": {"content": content}}]}).encode(), {}


def failing(status, times, message=b"{}", **headers):
    """Return a function that answers with an error a few times, then with "yes"."""
    return lambda _, number: (status, message, headers) if number < times else "yes"


def test_a_question_without_images_is_one_text_part(ask, server):
    assert ask(lambda *_: "  so it is ") == "  so it is "
    [request] = server.requests
    assert request.body["messages"][0]["content"] == [{"type": "text", "text": "Is it so?"}]
    assert "authorization" not in request.headers


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
def test_the_endpoint_url_may_end_in_chat_completions(ask, server, ending):
    ask(lambda *_: "yes", endpoint=server.url + ending)
    assert server.requests[0].path == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("content", "text"), [(None, ""), ("", ""), ([{"type": "text", "text": "a"}, {"text": "b"}], "ab")]
)
def test_content_may_be_missing_or_a_list_of_parts(ask, content, text):
    assert ask(lambda *_: replied(content)) == text


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_transient_errors_are_retried(ask, server, status):
    assert ask(failing(status, 2)) == "yes"
    assert len(server.requests) == 3
    assert server.requests[0].body == server.requests[2].body


def test_retry_after_seconds_are_waited_for(ask, monkeypatch):
    stop, waited = threading.Event(), []
    monkeypatch.setattr(stop, "wait", waited.append)  # returns None: not stopped
    ask(lambda _, n: (429, b"", {"Retry-After": ["7", "1000", "soon"][n]}) if n < 3 else "yes", stop, 1.0)
    assert waited == [7, chat_endpoint.LONGEST_WAIT, 4]


def test_retry_after_may_be_a_date(ask, monkeypatch):
    stop, waited = threading.Event(), []
    monkeypatch.setattr(stop, "wait", waited.append)
    monkeypatch.setattr(chat_endpoint.time, "time", lambda: 784_111_777.0 - 20)
    ask(failing(503, 1, **{"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}), stop)
    assert waited == [20]


def test_a_permanent_server_error_is_one_line_after_all_tries(ask, server):
    with pytest.raises(InputError) as error:
        ask(lambda *_: (500, b'{"error": {"message": "out of\\nmemory"}}', {}))
    assert str(error.value) == (
        f"config.tags.endpoint is {server.url}: 500 Internal Server Error out of memory "
        f"({chat_endpoint.TRIES} tries); the answers so far are saved, rerun the command to continue"
    )
    assert len(server.requests) == chat_endpoint.TRIES


@pytest.mark.parametrize(
    ("status", "message", "text"),
    [
        (400, b"bad picture", "400 Bad Request bad picture"),
        (401, b'{"error": "who are you?"}', "401 Unauthorized who are you?"),
        (403, b"", "403 Forbidden"),
        (404, b'{"detail": "no such model"}', "no such model"),
        (413, b"\xff" * 5000, "413 Request Entity Too Large"),
    ],
)
def test_client_errors_are_not_retried(ask, server, status, message, text):
    with pytest.raises(InputError, match=text) as error:
        ask(lambda *_: (status, message, {}))
    assert len(server.requests) == 1
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>busy</html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"3"],
)
def test_malformed_answers_are_retried(ask, body):
    assert ask(failing(200, 2, body)) == "yes"
    with pytest.raises(InputError, match=r"malformed answer: .*\(6 tries\)"):
        ask(lambda *_: (200, body, {}))


def test_a_truncated_answer_is_retried(ask):
    whole = replied("yes")
    assert ask(lambda _, n: (200, whole[1][:20], {"Content-Length": "500"}) if n == 0 else whole) == "yes"


def test_a_slow_server_times_out(ask, server):
    release = threading.Event()

    def slow(*_):
        release.wait(30)
        return "late"

    with pytest.raises(InputError, match=r"no answer within 0.05 s \(6 tries\)"):
        ask(slow, timeout=0.05)
    release.set()
    assert len(server.requests) == chat_endpoint.TRIES


def test_refused_parameters_are_replaced(ask, server):
    def newer(request, _):
        for name in ("max_tokens", "temperature"):
            if name in request.body:
                return (
                    400,
                    json.dumps({"error": {"message": f"Unsupported parameter: '{name}'"}}).encode(),
                    {},
                )
        return "yes"

    assert ask(newer) == "yes"
    assert server.requests[-1].body["max_completion_tokens"] == TagsConfig().max_tokens
    assert len(server.requests) == 3


def test_redirects_are_not_followed(ask, server, monkeypatch):
    monkeypatch.setenv("A_KEY", "secret")
    with pytest.raises(InputError, match="307"):
        ask(lambda *_: (307, b"", {"Location": f"{server.url}/elsewhere"}), key="A_KEY")
    assert len(server.requests) == 1


def test_stopping_the_run_ends_the_wait(ask, server):
    stop = threading.Event()

    def refuses(*_):
        stop.set()
        return 503, b"", {}

    with pytest.raises(RunStopped):
        ask(refuses, stop, first_wait=100.0)
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_malformed_keys_are_refused_and_not_shown(ask, server, monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    with pytest.raises(InputError, match="only printable ASCII characters") as error:
        ask(lambda *_: "yes", key="A_KEY")
    assert key not in str(error.value)
    assert not server.requests


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"endpoint": "localhost:8000"}, "must be a URL"),
        ({"endpoint": "ftp://host/v1"}, "must be a URL"),
        ({"endpoint": "https://me:secret@host/v1"}, "must have only scheme, host, port and path"),
        ({"endpoint": "https://host/v1?key=secret"}, "must have only scheme, host, port and path"),
        ({"key": "sk-secret"}, "never the key"),
    ],
)
def test_malformed_fields_are_refused(fields, text):
    with pytest.raises(InputError, match=text) as error:
        TagsConfig(**fields)
    assert "secret" not in str(error.value)
