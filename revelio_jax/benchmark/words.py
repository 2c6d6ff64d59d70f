"""Read a text such as ``sld preset=max scale=200``: a name and its settings."""

import json
import shlex
import typing

from revelio_jax.errors import InputError


def parse(field: str, text: str) -> tuple[str, dict[str, typing.Any]]:
    """Return the first word of ``text``, and the settings ``name=value`` in the other words.

    Words are separated by spaces, and quoted as in a shell. A value is read as JSON if it is JSON; ``yes``, ``no`` and
    ``a,b`` are read as in config fields. Raise InputError, which names ``field``, if a word has no ``=`` or a setting
    is given twice.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{field} has {text!r}, which cannot be split into words: {error}") from error
    if not words:
        raise InputError(f"{field} has an empty text; it must be a name with settings, for example 'sld preset=max'")
    settings: dict[str, typing.Any] = {}
    for word in words[1:]:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise InputError(f"{field} has {text!r}; {word!r} must be name=value")
        if name in settings:
            raise InputError(f"{field} has {text!r}; {name} is given twice")
        settings[name] = _value(value)
    return words[0], settings


def _value(text: str) -> typing.Any:
    if text in ("yes", "no"):
        return text == "yes"
    try:
        return json.loads(text)
    except ValueError:
        return text
