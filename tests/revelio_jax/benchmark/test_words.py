"""A name with settings in one text."""

import json
import shlex

import hypothesis
import hypothesis.strategies as st
import pytest

from revelio_jax.benchmark import words
from revelio_jax.errors import InputError

names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
texts = st.text(max_size=8).filter(lambda text: text not in ("yes", "no") and not _is_json(text))
values = st.one_of(st.integers(-9, 9), st.booleans(), st.floats(-9, 9), texts)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@hypothesis.settings(max_examples=40)
@hypothesis.given(names, st.dictionaries(names, values, max_size=3))
def test_what_is_written_is_read(name, settings):
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    written = shlex.join([name, *(f"{key}={text}" for key, text in texts.items())])
    assert words.parse("field", written) == (name, settings)


def test_values_are_read_like_config_fields():
    text = "sld preset=max scale=200 partial=yes path='a folder/x' strengths=-1,-0.5"
    expected = {"preset": "max", "scale": 200, "partial": True, "path": "a folder/x", "strengths": "-1,-0.5"}
    assert words.parse("field", text) == ("sld", expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty text"),
        ("sld max", "'max' must be name=value"),
        ("sld =max", "'=max' must be name=value"),
        ("sld a=1 a=2", "a is given twice"),
        ("sld a='1", "cannot be split"),
    ],
)
def test_a_malformed_text_is_refused(text, message):
    with pytest.raises(InputError, match=message) as error:
        words.parse("config.x", text)
    assert str(error.value).startswith("config.x has ")
