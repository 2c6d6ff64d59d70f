"""Ask a model behind an OpenAI-compatible endpoint: POST {base}/chat/completions with images as data URIs.

The key is read from an environment variable and sent only to the endpoint: redirects are not followed, and no message
or file contains the key.
"""

import base64
import dataclasses
import email.utils
import http.client
import json
import os
import threading
import time
import typing
import urllib.error
import urllib.request
from collections.abc import Sequence

from revelio_jax.errors import InputError

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries; doubled after each
MESSAGE_CHARACTERS = 300  # shown of an endpoint's error message
RETRY_STATUS = (408, 409, 425, 429)  # worth retrying, like every status from 500 on
# Parameters that newer models refuse, and their replacements (None: send no such parameter).
REPLACEMENTS = {"max_tokens": "max_completion_tokens", "temperature": None}


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None  # urllib then raises HTTPError


class RequestFailed(Exception):
    """A failed request. ``retry``: worth retrying; ``wait``: seconds that the server asked for before a retry."""

    def __init__(self, message: str, retry: bool, wait: float = 0.0):
        super().__init__(message)
        self.retry, self.wait = retry, wait


class RunStopped(Exception):
    """The run is stopping, so the question was not sent."""


def read_key(section: str, variable: str | None) -> str:
    """Return the key in an environment variable, "" without one. Raise InputError if it is missing or malformed."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"{section}.key names an environment variable that is empty or not set; set the variable to the "
            f"endpoint's key, or leave {section}.key unset if the endpoint needs none"
        )
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"the environment variable named by {section}.key must have only printable ASCII characters")
    return key


@dataclasses.dataclass(frozen=True)
class EndpointOptions:
    """A model at an endpoint. ``section`` is the part of the config with the fields endpoint and key, for messages.

    ``timeout`` is in seconds. ``advice`` ends the message when all tries fail.
    """

    section: str
    endpoint: str
    model: str
    key: str | None = None
    max_tokens: int = 256
    timeout: float = 120.0
    advice: str = ""


class ChatEndpoint:
    """A chat-completions endpoint; threads may share it. Nothing is sent before the first question.

    Setting ``stop`` ends the waits between tries; ``first_wait`` is the shortest of them in seconds. Raise InputError
    if the key is missing or malformed.
    """

    def __init__(self, options: EndpointOptions, stop: threading.Event, first_wait: float = FIRST_WAIT):
        self._base = options.endpoint.rstrip("/").removesuffix("/chat/completions")
        self._options, self._stop, self._first_wait = options, stop, first_wait
        self._key = read_key(options.section, options.key)
        self._opener = urllib.request.build_opener(_RefuseRedirects)
        self._parameters = {"max_tokens": options.max_tokens, "temperature": 0}
        self._answered = False

    def ask(self, text: str, images: Sequence[bytes] = ()) -> str:
        """Return the answer to a question about PNG images, "" without text.

        Raise InputError if all tries fail, and RunStopped if the run is stopping.
        """
        for attempt in range(1, TRIES + 1):
            try:
                answer = self._try(text, images)
            except RequestFailed as error:
                if attempt == TRIES or not error.retry:
                    tries = f" ({attempt} tries)" if attempt > 1 else ""
                    advice = f"; {self._options.advice}" if self._options.advice else ""
                    raise InputError(
                        f"{self._options.section}.endpoint is {self._base}: {error}{tries}{advice}"
                    ) from None
                wait = min(max(self._first_wait * 2 ** (attempt - 1), error.wait), LONGEST_WAIT)
                if self._stop.wait(wait):
                    raise RunStopped from None
            else:
                self._answered = True
                return answer
        raise AssertionError("unreachable")

    def _try(self, text: str, images: Sequence[bytes]) -> str:
        content: list[dict[str, typing.Any]]
        content = [{"type": "image_url", "image_url": {"url": _data_uri(image)}} for image in images]
        content.append({"type": "text", "text": text})
        body = {"model": self._options.model, "messages": [{"role": "user", "content": content}]}
        while True:
            parameters = dict(self._parameters)
            try:
                return _answer_of(self._post(body | parameters))
            except urllib.error.HTTPError as error:
                message = self._clean(_message_of(error))
                if error.code == 400 and self._adapt_parameters(message, parameters):
                    continue
                retry = error.code in RETRY_STATUS or error.code >= 500
                raise RequestFailed(f"{error.code} {error.reason} {message}".strip(), retry, _wait(error)) from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise RequestFailed(f"no answer within {self._options.timeout:g} s", True) from None
                message = self._clean(str(reason) or type(reason).__name__)
                # If an endpoint never answered, its address is more likely wrong than its server busy.
                never_reached = isinstance(error, urllib.error.URLError) and not self._answered
                raise RequestFailed(f"no connection: {message}", not never_reached) from None
            except ValueError as error:
                raise RequestFailed(f"malformed answer: {self._clean(str(error))}", True) from None

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

    def _adapt_parameters(self, message: str, sent: dict[str, typing.Any]) -> bool:
        """Replace a parameter that the endpoint refused, for all further requests; return whether it refused one."""
        for name, other in REPLACEMENTS.items():
            if name in sent and name in message:
                parameters = {key: value for key, value in sent.items() if key != name}
                self._parameters = parameters | ({other: sent[name]} if other else {})
                return True
        return False

    def _clean(self, message: str) -> str:
        """Return an endpoint's message on one line and without the key, which some endpoints repeat."""
        message = " ".join(message.split())
        if self._key:
            message = message.replace(self._key, "[key]")
        return message[:MESSAGE_CHARACTERS]


def _data_uri(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _answer_of(body: bytes) -> str:
    """Return the text of a completion. Raise ValueError if it is malformed."""
    try:
        reply = json.loads(body)
    except ValueError:
        raise ValueError(body[:MESSAGE_CHARACTERS].decode(errors="replace") or "an empty body") from None
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
    """Return the message in the body of an error, whose place depends on the server."""
    try:
        body = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        reply = json.loads(body)
        reply = reply.get("error", reply)
        return str(reply.get("message", reply) if isinstance(reply, dict) else reply)
    except (ValueError, AttributeError):
        return body


def _wait(error: urllib.error.HTTPError) -> float:
    """Return the seconds of the header Retry-After, 0 if it is missing or malformed."""
    retry_after = error.headers.get("Retry-After", "")
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
