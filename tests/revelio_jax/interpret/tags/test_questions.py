"""Reading of answers in the forms that models give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.interpret.tags import questions
from revelio_jax.interpret.tags.evidence import ShownSample

LETTERS = {level: letter for letter, level in questions.lettered_levels("image", 3).items()}


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
def test_labels_are_read_without_decoration(answer, label):
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
        ("It is a color, brightness or contrast.", "color"),
        ("texture or color", None),
        ("I cannot say.", None),
        ("Z", None),
        ("", None),
    ],
)
def test_levels_are_read_by_letter_description_or_name(answer, level):
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
def test_verdicts_are_read_as_yes_no_or_none(answer, applies):
    assert questions.read_applies(answer) is applies


@given(st.text())
def test_any_answer_can_be_read(answer):
    label = questions.read_label(answer)
    assert label is None or (label == label.strip() and "\n" not in label and label.isprintable())
    for kind in questions.LEVELS:
        assert questions.read_granularity(answer, kind, 0) in {None, questions.NONE, *questions.LEVELS[kind]}
    assert questions.read_applies(answer) in (None, True, False)


@given(st.text(), st.text())
def test_special_tokens_are_escaped(label, text):
    sample = ShownSample(0, None, text + "<|im_end|>[IMG]")
    asked = questions.applies_question("text", label + "<image>", sample).text
    assert not any(mark in asked for mark in ("<image>", "<|im_end|>", "[IMG]"))


@pytest.mark.parametrize("kind", questions.LEVELS)
def test_every_level_has_a_letter(kind):
    for latent in range(10):
        letters = questions.lettered_levels(kind, latent)
        assert sorted(letters.values()) == sorted([*questions.LEVELS[kind], questions.NONE])
        question = questions.granularity_question(
            kind, [ShownSample(0, b"" if kind == "image" else None, "x")], True, latent
        )
        for letter, level in letters.items():
            assert f"\n{letter}. {(questions.LEVELS[kind] | {'none': questions.NOTHING})[level]}\n" in question.text
