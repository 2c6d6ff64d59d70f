"""A model behind an OpenAI-compatible endpoint: POST {base}/chat/completions, pictures as data URIs.

Of the standard library alone. The key is read from the environment, sent to the endpoint and nowhere else:
no redirect is followed, and no message or file holds it.
"""

import base64
import email.utils
import http.client
import json
import os
import threading
import time
import typing
import urllib.error
import urllib.request

from revelio_jax.config import TagsConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.tags.answers import Stopped, VisionLanguageModel
from revelio_jax.interpret.tags.questions import Question

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between them, doubled each time
TOLD = 300  # letters of an endpoint's message that are passed on
AGAIN = (408, 409, 425, 429)  # and all from 500: an error that may pass
# Newer models refuse parameters that others need; the first that they name is changed, once.
INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": None}


class _Refuse(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # it becomes an HTTPError


class _Fails(Exception):
    """A request without an answer; ``wait`` seconds are asked for, ``again`` where another may have one."""

    def __init__(self, message: str, again: bool, wait: float = 0.0):
        super().__init__(message)
        self.again, self.wait = again, wait


def open_endpoint(options: TagsConfig, stop: threading.Event, first_wait: float = FIRST_WAIT) -> VisionLanguageModel:
    """The model that config names, behind its endpoint; nothing is sent yet. Raises InputError."""
    key = ""
    if options.key:
        key = os.environ.get(options.key, "").strip()
        if not key:
            raise InputError(
                "config.tags.key names an environment variable that is empty or not set; it holds "
                "the endpoint's key, without one leave the field empty"
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError("the environment variable that config.tags.key names holds letters that no key has")
    endpoint = Endpoint(options, key, stop, first_wait)
    return VisionLanguageModel(options.model, f"endpoint {options.model}", endpoint.ask, options.parallel)


class Endpoint:
    def __init__(self, options: TagsConfig, key: str, stop: threading.Event, first_wait: float):
        self._base = options.endpoint.rstrip("/").removesuffix("/chat/completions")
        self._options, self._key, self._stop, self._first_wait = options, key, stop, first_wait
        self._opener = urllib.request.build_opener(_Refuse)
        self._parameters = {"max_tokens": options.max_tokens, "temperature": 0}
        self._answered = False

    def ask(self, question: Question) -> str:
        """The answer, "" where it has no text. Raises InputError where none comes, Stopped after stop."""
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._once(question)
            except _Fails as error:
                if attempt == TRIES or not error.again:
                    times = f", {attempt} times" if attempt > 1 else ""
                    raise InputError(
                        f"config.tags.endpoint {self._base}: {error}{times}; what was answered is "
                        "kept, the same command goes on"
                    ) from None
                wait = min(max(self._first_wait * 2 ** (attempt - 1), error.wait), LONGEST_WAIT)
                if self._stop.wait(wait):
                    raise Stopped from None
            else:
                self._answered = True
                return answer
        raise AssertionError("unreachable")

    def _once(self, question: Question) -> str:
        content = [{"type": "image_url", "image_url": {"url": _data_uri(picture)}} for picture in question.pictures]
        content.append({"type": "text", "text": question.text})
        body = {"model": self._options.model, "messages": [{"role": "user", "content": content}]}
        while True:
            parameters = dict(self._parameters)
            try:
                return _answer_of(self._post(body | parameters))
            except urllib.error.HTTPError as error:
                message = self._told(_message_of(error))
                if error.code == 400 and self._adapted(message, parameters):
                    continue
                again = error.code in AGAIN or error.code >= 500
                raise _Fails(f"{error.code} {error.reason} {message}".strip(), again, _wait(error)) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise _Fails(f"no answer within {self._options.timeout:g} s", True) from None
                told = self._told(str(reason) or type(reason).__name__)
                # What was never reached is more likely misspelt than busy.
                never = isinstance(error, urllib.error.URLError) and not self._answered
                raise _Fails(f"no connection: {told}", not never) from None
            except ValueError as error:
                raise _Fails(f"an answer that is none: {self._told(str(error))}", True) from None

    def _post(self, body: dict[str, typing.Any]) -> bytes:
        request = urllib.request.Request(
            f"{self._base}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "User-Agent": "revelio_jax"},
        )
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with self._opener.open(request, timeout=self._options.timeout) as response:
            return response.read()

    def _adapted(self, message: str, sent: dict[str, typing.Any]) -> bool:
        """Whether the endpoint refused a parameter that can be put otherwise, for this and all later ones."""
        for name, other in INSTEAD.items():
            if name in sent and name in message:
                parameters = {key: value for key, value in sent.items() if key != name}
                self._parameters = parameters | ({other: sent[name]} if other else {})
                return True
        return False

    def _told(self, message: str) -> str:
        """An endpoint's message on one line, without the key, which some repeat."""
        message = " ".join(message.split())
        if self._key:
            message = message.replace(self._key, "[key]")
        return message[:TOLD]


def _data_uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _answer_of(body: bytes) -> str:
    """The text of a completion. Raises ValueError where it is none."""
    try:
        reply = json.loads(body)
    except ValueError:
        raise ValueError(body[:TOLD].decode(errors="replace") or "an empty body") from None
    try:
        content = reply["choices"][0]["message"]["content"]
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
        if content is None or isinstance(content, str):
            return content or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        pass
    raise ValueError(json.dumps(reply))


def _message_of(error: urllib.error.HTTPError) -> str:
    """What an error's body says, wherever servers put it."""
    try:
        body = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        said = json.loads(body)
        said = said.get("error", said)
        return str(said.get("message", said) if isinstance(said, dict) else said)
    except (ValueError, AttributeError):
        return body


def _wait(error: urllib.error.HTTPError) -> float:
    """Seconds that Retry-After asks for, 0 where it says nothing."""
    said = error.headers.get("Retry-After", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0
