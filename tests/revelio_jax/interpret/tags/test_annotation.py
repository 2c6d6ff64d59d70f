"""Annotations: heat maps and crops of images, stars in texts."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax.interpret.latents.layout import make_map
from revelio_jax.interpret.tags import annotation
from revelio_jax.interpret.tags.evidence import unfold

CLIP = ["<|startoftext|>", "a</w>", "red</w>", "app", "le</w>", "<|endoftext|>"]
T5 = ["▁a", "▁red", "▁app", "le", "</s>"]


def shades(*values):
    return np.array(values, np.uint8)


def parts_of(panel):
    side = panel.height
    return [np.asarray(panel.crop((left, 0, left + side, side))) for left in (0, side + 8, 2 * side + 16)]


@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 1), (3, 3)])
def test_heat_map_and_crop_are_at_the_peak(place):
    pixels = np.full((64, 64, 3), 100, np.uint8)
    row, column = place
    pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 0, 0, 250
    heat = np.zeros((4, 4), np.float32)
    heat[place] = 1
    plain, hot, crop = parts_of(annotation.panel(PIL.Image.fromarray(pixels), heat, place))
    blue = plain[..., 2] > 200
    assert abs(blue.mean() - 1 / 16) < 0.01
    red = hot[..., 0].astype(int) - hot[..., 2] > 150
    assert (red & blue).sum() > 0.9 * red.sum() * 0.6
    yellowest = np.unravel_index(hot[..., 1].astype(int).argmax(), red.shape)
    assert blue[yellowest]
    silent = np.ones((4, 4), bool)
    silent[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = False
    elsewhere = hot[silent.repeat(56, 0).repeat(56, 1)]
    assert (elsewhere == elsewhere[0]).all()  # gray
    assert (crop[..., 2] > 200).mean() > 3.5 * blue.mean()  # the crop is a quarter of the image


def test_images_are_resized_within_limits():
    for size, shown in [((32, 32), (224, 224)), ((32, 16), (224, 112)), ((2000, 1000), (512, 256))]:
        assert annotation.panel(PIL.Image.new("L", size)).size == shown
    panel = annotation.panel(PIL.Image.new("RGB", (64, 32)), np.ones((2, 4), np.float32), (1, 3))
    assert panel.size == (3 * 224 + 16, 112)


@pytest.mark.parametrize(
    ("tokens", "shade", "peak", "text"),
    [
        (CLIP, (0, 0, 255, 0, 0, 0), 2, "a **red** apple"),
        (CLIP, (0, 0, 0, 255, 128, 0), 3, "a red **apple**"),
        (CLIP, (0, 0, 255, 10, 0, 0), 2, "a **red** apple"),  # too weak to be marked
        (CLIP, (255, 200, 0, 0, 0, 0), 0, "**(start) a** red apple"),
        (CLIP, (0, 0, 0, 0, 0, 255), 5, "a red apple **(end)**"),
        (CLIP, (0, 0, 0, 0, 0, 0, 0, 255), 7, "a red apple **(padding)**"),
        (T5, (0, 255, 0, 0, 0), 1, "a **red** apple"),
        (T5, (0, 0, 0, 255, 0), 3, "a red app**le**"),
    ],
)
def test_stars_mark_the_firing_tokens(tokens, shade, peak, text):
    assert annotation.text(tokens, shades(*shade), peak) == text


def test_long_texts_are_shown_around_the_peak():
    tokens = [f"w{i}</w>" for i in range(300)]
    shade = np.zeros(300, np.uint8)
    shade[150] = 255
    text = annotation.text(tokens, shade, 150)
    assert "**w150**" in text
    assert text.startswith("… w110 ")
    assert text.endswith(" w190 …")


def test_a_held_out_text_is_the_part_that_the_encoder_reads():
    assert annotation.plain_text(CLIP) == annotation.plain_text(T5) == "a red apple"
    assert len(annotation.plain_text([f"{'x' * 50}</w>"] * 500)) < 4010


class FakeStore:
    def __init__(self, height, width):
        self.manifest = {"extract": {"height": height, "width": width}}


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 60))
def test_unfold_inverts_make_map_for_maps(height, width, most):
    cells = make_map("unet.mid_block", FakeStore(height, width), height * width, most)
    if cells.grid is None:
        return
    profile = np.arange(cells.shape[0] * cells.shape[1])
    assert (unfold(profile, cells.shape, cells.grid).reshape(-1) == cells.cell_of_position).all()


@given(st.integers(1, 200), st.integers(1, 60))
def test_unfold_inverts_make_map_for_texts(positions, most):
    cells = make_map("clip.layer.1", FakeStore(0, 0), positions, most)
    profile = np.arange(cells.shape[1])
    assert (unfold(profile, cells.shape, (1, positions))[0] == cells.cell_of_position).all()
