"""The miniatures as they ship: they load unchanged, the judge works, images follow the prompt."""

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
APPLE = data.Emoji("red apple", "flat", "food", "food-fruit", held_out=False)


@pytest.fixture(scope="module", params=["sd", "flux"])
def folder(request):
    return HERE / request.param


def load(folder):
    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    return load(folder)


def test_the_folder_is_small_and_the_card_names_its_sources(folder):
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 15e6
    card = (folder / "README.md").read_text()
    for package, _ in data.PACKAGES.values():
        assert package.rpartition("@")[0] in card
    measured = json.loads((folder / "measured.json").read_text())
    assert f"{measured['trained_pairs']['style']:.3f}" in card


@pytest.mark.slow
def test_images_follow_style_and_category(folder, pipe):
    trained = [row for row in CAPTIONS if row["style"] and row["name"] and row["held_out"] == "0"]
    rows = random.Random(5).sample(trained, 48)
    images = sample(pipe, [row["prompt"] for row in rows], list(range(48)), **measure.SAMPLING[folder.name]).images
    labels = miniature_judge.load(HERE / "sd").label(images)
    for key in miniature_judge.LABELS:  # below the accuracy in the model card: 48 images are few
        assert np.mean([label[key] == row[key] for label, row in zip(labels, rows, strict=True)]) > 0.7


def test_both_miniatures_share_the_autoencoder_of_the_judge(pipe):
    """Both decode latents alike, so the judge is as good for one as for the other."""
    latents = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    sd = load(HERE / "sd").vae
    torch.testing.assert_close(pipe.vae.decode(latents).sample, sd.decode(latents).sample)
    assert (HERE / "flux" / "prompts.csv").read_bytes() == (HERE / "sd" / "prompts.csv").read_bytes()


def test_the_tokenizer_has_tokens_for_its_captions_and_pads_like_clip(pipe):
    tokens = pipe.tokenizer("a glossy 3d emoji of a red apple", padding="max_length").input_ids
    assert len(tokens) == tokenizer.MAX_LENGTH
    assert tokens.count(pipe.tokenizer.eos_token_id) == tokenizer.MAX_LENGTH - 10
    assert pipe.tokenizer.tokenize("glossy red apple") == ["glossy</w>", "red</w>", "apple</w>"]
    longest = max(len(pipe.tokenizer(row["prompt"]).input_ids) for row in CAPTIONS)
    assert longest <= tokenizer.MAX_LENGTH


def test_the_tokenizer_of_t5_has_every_word_of_its_captions_and_spells_others():
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


@pytest.mark.slow
def test_t5_carries_the_style_of_flux():
    """Steering T5 can remove the style, although CLIP's pooled vector also carries it."""
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
        images = pipe(prompts, t5_prompts, generator=generator, output_type="np", **arguments).images
        labels = miniature_judge.load(HERE / "sd").label((images * 255).round().astype(np.uint8))
        shares.append(np.mean([label["style"] == "glossy 3d" for label in labels]))
    assert shares[1] < shares[0] - 0.2


def test_a_saved_tokenizer_loads_and_spells_unknown_words(tmp_path):
    tokenizer.fit(["a red apple", "a flat red heart"] * 4).save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("red") == ["red</w>"]
    assert loaded.decode(loaded("xylophone").input_ids, skip_special_tokens=True).strip() == "xylophone"
    assert loaded.pad_token_id == loaded.eos_token_id


def test_captions_contain_their_labels():
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


def test_a_tenth_of_the_captions_is_empty_and_most_contain_style_and_name():
    rng = random.Random(0)
    captions = [data.caption(APPLE, rng) for _ in range(4000)]
    empty = captions.count("") / 4000
    styled = np.mean(["flat" in c and "red apple" in c for c in captions])
    assert 0.08 < empty < 0.12
    assert 0.63 < styled < 0.73


def test_measured_images_are_spread_over_styles_and_categories():
    emojis = [
        data.Emoji(f"{category} {i}", style, category, "", held_out=False)
        for style in data.STYLES for category in data.CATEGORIES for i in range(9)
    ]  # fmt: skip
    chosen = measure.spread(emojis, 48)
    assert len(set(chosen)) == 48
    assert set(collections.Counter((p.style, p.category) for p in chosen).values()) == {2}
    assert chosen == measure.spread(emojis, 48)


def test_the_judge_is_never_shown_a_fifth_of_the_objects():
    emojis = [data.Emoji(str(i), style, "food", "", held_out=False) for i in range(50) for style in data.STYLES]
    unseen = judge.unseen_objects(emojis)
    assert len(unseen) == 10
    assert unseen == judge.unseen_objects(emojis[::-1])


def test_no_config_contains_the_folder_it_was_loaded_from(folder):
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        assert "_name_or_path" not in json.loads(path.read_text()), path
