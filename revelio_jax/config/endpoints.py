"""Check the URL and the key of an OpenAI-compatible endpoint. No message repeats a value that may be a key."""

import re
import urllib.parse

from revelio_jax.errors import InputError


def check_endpoint(section: str, endpoint: str | None, key: str | None) -> None:
    """Raise InputError if ``section``.endpoint is not a plain URL or ``section``.key not the name of a variable."""
    if key and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", key):
        raise InputError(
            f"{section}.key is not the name of an environment variable (letters, digits, underscores); "
            "set it to the name of the variable that holds the key, for example OPENAI_API_KEY, never the key"
        )
    if endpoint:
        try:
            url = urllib.parse.urlsplit(endpoint)
            _ = url.port  # raises ValueError if it is malformed
        except ValueError as error:
            raise InputError(f"{section}.endpoint is not a URL: {error}") from error
        if url.username or url.password or url.query:
            raise InputError(
                f"{section}.endpoint must have only scheme, host, port and path; put a key into an "
                f"environment variable and name it in {section}.key"
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InputError(
                f"{section}.endpoint is {endpoint!r}; it must be a URL, for example http://localhost:8000/v1"
            )
