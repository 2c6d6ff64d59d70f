"""Matched prompts, the positions to interchange, and the labels of interchanged images."""

import numpy as np
import pytest

from revelio_jax.benchmark.judgment import Judgment
from revelio_jax.config import SteerConfig
from revelio_jax.faithfulness import interchange
from revelio_jax.faithfulness.patches import Clock
from revelio_jax.faithfulness.sites import scanned_site
from tests.helpers.steering import record_outputs

COLUMNS = ("style", "category")
LABELED = [
    {"prompt": f"a {style} emoji of {name}", "style": style, "category": category}
    for style in ("flat", "noto", "glossy 3d")
    for name, category in (("cat", "animal"), ("dog", "animal"), ("red apple", "food"), ("apple", "food"))
] + [{"prompt": "a cat", "style": "", "category": "animal"}]
SETTINGS = SteerConfig(steps=1, guidance=3.0, height=32, width=32, batch_size=4)


class Brightness:
    """A judge that calls the brighter of two images light."""

    columns = ("style",)

    def judge(self, pixels):
        return [Judgment({"style": "flat" if each.mean() > pixels.mean() else "noto"}, {}) for each in pixels]


@pytest.mark.parametrize("column", COLUMNS)
def test_pairs_differ_in_one_label_and_have_the_same_kinds_of_tokens(column, pipe):
    pairs = interchange.find_pairs(pipe, LABELED, COLUMNS, column, 6, 0)
    assert len(pairs.first) == 6
    lengths = set()
    for first, second in zip(pairs.first, pairs.second, strict=True):
        assert [each for each in COLUMNS if first[each] != second[each]] == [column]
        assert all(first.values())
        lengths |= {len(pipe.tokenizer(row["prompt"]).input_ids) for row in (first, second)}
    assert len(lengths) == 1
    if column == "style":  # the second prompt shares the most words
        names = [[row["prompt"].rpartition(" of ")[2] for row in rows] for rows in (pairs.first, pairs.second)]
        assert names[0] == names[1]
    assert (pairs.kinds["text_encoder"] == 1).sum() == lengths.pop() - 2


def test_no_pairs_without_another_label(pipe):
    rows = [row for row in LABELED if row["style"] == "flat"]
    assert interchange.find_pairs(pipe, rows, COLUMNS, "style", 6, 0) is None


def test_words_and_other_tokens_are_interchanged_apart(pipe, miniature):
    pairs = interchange.find_pairs(pipe, LABELED, COLUMNS, "style", 2, 0)
    words, others = interchange.selections(pipe, scanned_site(pipe, "clip.layer.2"), pairs).values()
    assert (words ^ others).all()
    assert not words[0]  # BOS
    assert words.sum() == (pairs.kinds["text_encoder"] == 1).sum()
    assert interchange.selections(pipe, scanned_site(pipe, "unet.mid_block"), pairs) == {"all positions": "all"}


def test_interchange_of_the_last_block_shows_the_label_of_the_other_prompt(pipe):
    pairs = interchange.find_pairs(pipe, LABELED, COLUMNS, "style", 3, 0)
    judge, clock = Brightness(), Clock()
    first, second = interchange.measure(pipe, pairs, judge, SETTINGS, 0, clock)
    moved, still = interchange.measure(pipe, pairs, judge, SETTINGS, 0, clock, scanned_site(pipe, "unet.up_blocks.1"))
    assert still == second  # the second prompts are plain in every batch
    assert moved == second  # every later value depends on this block alone
    assert first["first"]["mean"] + first["second"]["mean"] == pytest.approx(1.0)
    assert clock.replaced


def test_rows_of_the_first_prompts_are_replaced_in_every_batch(pipe):
    """Three pairs in batches of two pairs: the last batch is smaller."""
    pairs = interchange.find_pairs(pipe, LABELED, COLUMNS, "style", 3, 0)
    with record_outputs(pipe, "unet.mid_block") as outputs:
        interchange.measure(pipe, pairs, Brightness(), SETTINGS, 0, Clock(), scanned_site(pipe, "unet.mid_block"))
    sizes = [len(x) // 2 for x in outputs]
    assert sizes == [4, 2]
    for x, size in zip(outputs, sizes, strict=True):
        conditional, half = x[size:].numpy(), size // 2
        np.testing.assert_allclose(conditional[:half], conditional[half:], rtol=1e-4, atol=1e-5)
