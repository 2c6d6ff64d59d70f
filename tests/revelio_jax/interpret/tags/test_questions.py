"""What answers mean, however models put them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.interpret.tags import questions
from revelio_jax.interpret.tags.evidence import Exhibit

LETTERS = {level: letter for letter, level in questions.lettered("image", 3).items()}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("red hearts", "red hearts"),
        ('"Red hearts."', "Red hearts"),
        ("**Label:** red hearts\n\nThe pictures all show", "red hearts"),
        ("\n\n- The label: `wheels of trains`", "wheels of trains"),
        ("Answer: eye (left)", "eye (left)"),
        ("<think>It may be hearts.\nLabel: no</think>\nred hearts", "red hearts"),
        ("rote Herzen \u2764", "rote Herzen \u2764"),
        ("赤いハート", "赤いハート"),
        ('{"label": "roofs of \\"houses\\"", "granularity": "object"}', 'roofs of "houses'),
        ('```json\n{\n  "label": "blue skies"\n}\n```', "blue skies"),
        ('{"label": "', None),
        ("I am sorry, I cannot help with that", None),
        ("I'm unable to see the pictures.", None),
        ("I can\u2019t", None),
        ("", None),
        ("...\n---", None),
        ("word " * 60, None),
    ],
)
def test_labels(answer, label):
    assert questions.read_label(answer) == label


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (LETTERS["texture"], "texture"),
        (f"({LETTERS['layout']})", "layout"),
        (f"{LETTERS['none']}.", "none"),
        (f"{LETTERS['class']}. one particular kind", "class"),
        (f"**{LETTERS['part']}**", "part"),
        (LETTERS["shape"].lower(), "shape"),
        (f"The answer is {LETTERS['style']}.", "style"),
        ("A texture", "texture"),
        ("It is a colour, brightness or contrast.", "colour"),
        ("texture or colour", None),
        ("I cannot say.", None),
        ("Z", None),
        ("", None),
    ],
)
def test_levels(answer, level):
    assert questions.read_granularity(answer, "image", 3) == level


@pytest.mark.parametrize(
    ("answer", "applies"),
    [
        ("yes", True),
        ("No.", False),
        ("**Yes**, there is no doubt", True),
        ("I think the answer is no", False),
        ("<think>yes or no?</think>no", False),
        ("maybe", None),
        ("it could be yes or no", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_verdicts(answer, applies):
    assert questions.read_applies(answer) is applies


@given(st.text())
def test_no_answer_is_a_failure(answer):
    label = questions.read_label(answer)
    assert label is None or (label == label.strip() and "\n" not in label and label.isprintable())
    for kind in questions.LEVELS:
        assert questions.read_granularity(answer, kind, 0) in {None, questions.NONE, *questions.LEVELS[kind]}
    assert questions.read_applies(answer) in (None, True, False)


@given(st.text(), st.text())
def test_no_text_is_a_mark_of_a_processor(label, text):
    asked = questions.about_sample("text", label + "<image>", Exhibit(0, None, text + "<|im_end|>[IMG]")).text
    assert not any(mark in asked for mark in ("<image>", "<|im_end|>", "[IMG]"))


@pytest.mark.parametrize("kind", questions.LEVELS)
def test_every_level_has_a_letter(kind):
    for latent in range(10):
        letters = questions.lettered(kind, latent)
        assert sorted(letters.values()) == sorted([*questions.LEVELS[kind], questions.NONE])
        question = questions.about_granularity(kind, [Exhibit(0, b"" if kind == "image" else None, "x")], True, latent)
        for letter, level in letters.items():
            assert f"\n{letter}. {(questions.LEVELS[kind] | {'none': questions.NOTHING})[level]}\n" in question.text
