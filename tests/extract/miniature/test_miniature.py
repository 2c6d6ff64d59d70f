"""The miniatures as they ship: they load unchanged, the judge works, pictures follow the prompt."""

import collections
import json
import pathlib
import random
import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPTokenizer, T5TokenizerFast

from extract.miniature import data, judge, measure, tokenizer
from revelio_jax.benchmark import miniature_judge
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines.sampling import sample

HERE = pathlib.Path(measure.__file__).parent
CAPTIONS = read_prompts(HERE / "sd" / "prompts.csv")
APPLE = data.Picture("red apple", "flat", "food", "food-fruit", held_out=False)


@pytest.fixture(scope="module", params=["sd", "flux"])
def folder(request):
    return HERE / request.param


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    return load(folder)


def test_it_is_small_and_says_where_it_comes_from(folder):
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 15e6
    card = (folder / "README.md").read_text()
    for package, _ in data.PACKAGES.values():
        assert package.rpartition("@")[0] in card
    measured = json.loads((folder / "measured.json").read_text())
    assert f"{measured['trained_pairs']['style']:.3f}" in card


def test_pictures_follow_style_and_category(folder, pipe):
    trained = [row for row in CAPTIONS if row["style"] and row["name"] and row["held_out"] == "0"]
    rows = random.Random(5).sample(trained, 48)
    pictures = sample(pipe, [row["prompt"] for row in rows], list(range(48)), **measure.SAMPLING[folder.name])
    labels = miniature_judge.load(HERE / "sd").label(pictures)
    for key in miniature_judge.LABELS:  # measured: see the model card; 48 pictures are few
        assert np.mean([label[key] == row[key] for label, row in zip(labels, rows, strict=True)]) > 0.7


def test_one_judge_serves_both(folder, pipe):
    """Both decode latents alike, so the judge, which was fitted on one, is as good on the other."""
    latents = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    sd = load(HERE / "sd").vae
    torch.testing.assert_close(pipe.vae.decode(latents).sample, sd.decode(latents).sample)
    assert (HERE / "flux" / "prompts.csv").read_bytes() == (HERE / "sd" / "prompts.csv").read_bytes()


def test_the_tokenizer_knows_its_captions_whole_and_pads_like_clip(pipe):
    tokens = pipe.tokenizer("a glossy 3d emoji of a red apple", padding="max_length").input_ids
    assert len(tokens) == tokenizer.MAX_LENGTH
    assert tokens.count(pipe.tokenizer.eos_token_id) == tokenizer.MAX_LENGTH - 10
    assert pipe.tokenizer.tokenize("glossy red apple") == ["glossy</w>", "red</w>", "apple</w>"]
    longest = max(len(pipe.tokenizer(row["prompt"]).input_ids) for row in CAPTIONS)
    assert longest <= tokenizer.MAX_LENGTH


def test_t5s_tokenizer_has_every_word_of_its_captions_and_spells_the_rest():
    shipped = T5TokenizerFast.from_pretrained(HERE / "flux" / "tokenizer_2")
    assert shipped.model_max_length == tokenizer.T5_MAX_LENGTH
    pieces = shipped.tokenize("a glossy 3d emoji of a red apple, flat style")
    assert pieces == ["▁a", "▁glossy", "▁3d", "▁emoji", "▁of", "▁a", "▁red", "▁apple", ",", "▁flat", "▁style"]
    for row in CAPTIONS:
        ids = shipped(row["prompt"]).input_ids
        assert len(ids) <= tokenizer.T5_MAX_LENGTH
        assert len(shipped.tokenize(row["prompt"])) == len(re.findall(r"\w+|[^\w ]", row["prompt"]))
        assert shipped.unk_token_id not in ids
    for text in ("Xylophone", "apples & pears?"):
        assert shipped.decode(shipped(text).input_ids, skip_special_tokens=True) == text


def test_t5_carries_the_style_of_flux():
    """So that steering T5 can remove it, though CLIP's pooled vector knows it too."""
    pipe = load(HERE / "flux")
    rows = [row for row in CAPTIONS if row["prompt"].startswith("glossy 3d emoji of") and row["name"]]
    rows = random.Random(6).sample(rows, 48)
    plain = [row["prompt"].removeprefix("glossy 3d ") for row in rows]
    arguments = {"num_inference_steps": 12, "true_cfg_scale": 3.0, "height": 32, "width": 32}
    arguments |= {"max_sequence_length": tokenizer.T5_MAX_LENGTH, "negative_prompt": [""] * 48}
    shares = []
    for t5_prompts in ([row["prompt"] for row in rows], plain):
        generator = torch.Generator().manual_seed(0)
        prompts = [row["prompt"] for row in rows]
        made = pipe(prompts, t5_prompts, generator=generator, output_type="np", **arguments).images
        labels = miniature_judge.load(HERE / "sd").label((made * 255).round().astype(np.uint8))
        shares.append(np.mean([label["style"] == "glossy 3d" for label in labels]))
    assert shares[1] < shares[0] - 0.2


def test_a_tokenizer_survives_saving_and_spells_what_it_does_not_know(tmp_path):
    tokenizer.fit(["a red apple", "a flat red heart"] * 4).save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("red") == ["red</w>"]
    assert loaded.decode(loaded("xylophone").input_ids, skip_special_tokens=True).strip() == "xylophone"
    assert loaded.pad_token_id == loaded.eos_token_id


def test_captions_say_what_their_labels_say():
    rows = {row["prompt"]: row for row in data.all_captions([APPLE])}
    assert len(rows) == len(data.PLAIN + data.STYLED + data.GENERIC)
    for prompt, row in rows.items():
        for label in ("style", "name"):
            assert (getattr(APPLE, label) in prompt) == bool(row[label])
            assert row[label] in prompt
    assert rows["a red apple"] == {
        "prompt": "a red apple",
        "style": "",
        "category": "food",
        "name": "red apple",
    }
    assert rows["flat"]["category"] == ""


def test_a_tenth_of_the_captions_is_empty_and_most_name_style_and_object():
    rng = random.Random(0)
    captions = [data.caption(APPLE, rng) for _ in range(4000)]
    empty = captions.count("") / 4000
    styled = np.mean(["flat" in c and "red apple" in c for c in captions])
    assert 0.08 < empty < 0.12
    assert 0.63 < styled < 0.73


def test_measured_pictures_are_spread_over_styles_and_categories():
    pictures = [
        data.Picture(f"{category} {i}", style, category, "", held_out=False)
        for style in data.STYLES for category in data.CATEGORIES for i in range(9)
    ]  # fmt: skip
    chosen = measure.spread(pictures, 48)
    assert len(set(chosen)) == 48
    assert set(collections.Counter((p.style, p.category) for p in chosen).values()) == {2}
    assert chosen == measure.spread(pictures, 48)


def test_the_judge_is_never_shown_a_fifth_of_the_objects():
    pictures = [data.Picture(str(i), style, "food", "", held_out=False) for i in range(50) for style in data.STYLES]
    unseen = judge.unseen_objects(pictures)
    assert len(unseen) == 10
    assert unseen == judge.unseen_objects(pictures[::-1])


def test_no_config_tells_where_it_was_made(folder):
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        assert "_name_or_path" not in json.loads(path.read_text()), path
