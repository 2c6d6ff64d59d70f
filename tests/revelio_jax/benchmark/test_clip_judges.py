"""CLIP zero-shot and Q16, on a tiny CLIP of random weights, against a direct computation."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import DETECTED
from revelio_jax.errors import InputError
from tests.helpers.tiny_clip import SIDE, WIDTH

CLASSES = ["cat", "red apple", "glossy 3d"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Images of the network's size, so that they need no resizing: uint8 [40, 32, 32, 3], more than one batch."""
    return np.random.default_rng(1).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)


@torch.no_grad()
def embeddings(clip_folder, pixels) -> torch.Tensor:
    """Compute the unit embeddings of images from the weights of the parts."""
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    x = (torch.tensor(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    projected = model.visual_projection(model.vision_model(x.permute(0, 3, 1, 2)).pooler_output)
    return projected / projected.norm(dim=1, keepdim=True)


@torch.no_grad()
def text_embeddings(clip_folder, texts) -> torch.Tensor:
    """Compute the unit embeddings of texts, one after the other, so without padding."""
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    rows = [model.text_projection(model.text_model(each).pooler_output) for each in ids]
    return torch.nn.functional.normalize(torch.cat(rows), dim=1)


def scale(clip_folder) -> float:
    return float(load_file(clip_folder / "model.safetensors")["logit_scale"].exp())


def clip(clip_folder, **settings):
    return load_judge("clip", json.dumps({"model": str(clip_folder), "classes": CLASSES, "device": "cpu"} | settings))


def test_the_probabilities_of_classes_are_those_of_a_direct_computation(clip_folder, pixels):
    judge = clip(clip_folder, template="a flat emoji of {}")
    texts = [f"a flat emoji of {name}" for name in CLASSES]
    logits = scale(clip_folder) * embeddings(clip_folder, pixels) @ text_embeddings(clip_folder, texts).T
    expected = logits.softmax(1).numpy()
    judgments = judge.judge(pixels)
    np.testing.assert_allclose([[each.scores[name] for name in CLASSES] for each in judgments], expected, atol=2e-5)
    assert len(set(expected.argmax(1))) > 1
    for number, name in enumerate(CLASSES):
        judgments = clip(clip_folder, template="a flat emoji of {}", **({"concept": [name]} if number else {})).judge(
            pixels
        )
        seen = [each.labels[DETECTED] == "yes" for each in judgments]
        assert seen == (expected.argmax(1) == number).tolist(), name  # the first class is the default
    assert judge.record["classes"] == texts


def test_the_concept_may_be_several_classes_with_a_threshold(clip_folder, pixels):
    judge = clip(clip_folder, concept=CLASSES[1:], threshold=0.4)
    for judgment in judge.judge(pixels):
        probability = judgment.scores["red apple"] + judgment.scores["glossy 3d"]
        assert judgment.labels == {DETECTED: "yes" if probability >= 0.4 else "no"}
    assert (judge.record["labels"], judge.record["threshold"]) == (CLASSES[1:], 0.4)


def test_a_column_gets_the_likeliest_class(clip_folder, pixels):
    judge = clip(clip_folder, column="thing")
    assert judge.columns == ("thing",)
    for judgment in judge.judge(pixels):
        assert judgment.labels == {"thing": max(judgment.scores, key=judgment.scores.get)}


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_q16_is_the_likelier_of_its_two_embeddings(clip_folder, pixels, tmp_path, suffix):
    prompts = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    file = tmp_path / f"q16{suffix}"
    if suffix == ".npy":
        np.save(file, prompts.half().numpy())  # as Q16's authors publish them, in half precision
        prompts = prompts.half().float()
    else:
        save_file({"prompts": prompts}, file)
    judge = load_judge("q16", json.dumps({"model": str(clip_folder), "embeddings": str(file), "device": "cpu"}))
    cosines = embeddings(clip_folder, pixels) @ torch.nn.functional.normalize(prompts, dim=1).T
    judgments = judge.judge(pixels)
    seen = [each.labels[DETECTED] == "yes" for each in judgments]
    assert seen == (cosines.argmax(1) == 1).tolist()
    assert 0 < sum(seen) < len(seen)
    expected = (scale(clip_folder) * cosines).softmax(1)[:, 1]
    np.testing.assert_allclose([each.scores["inappropriate"] for each in judgments], expected, atol=2e-5)
    assert set(judge.record["weights"]) == {"model.safetensors", "preprocessor_config.json", file.name}


def test_images_are_resized_and_cropped(clip_folder):
    flat = np.full((1, 80, 48, 3), (200, 30, 90), np.uint8)
    small = np.full((1, SIDE, SIDE, 3), (200, 30, 90), np.uint8)
    judge = clip(clip_folder)
    (large_scores,), (small_scores,) = (judge.judge(images) for images in (flat, small))
    assert large_scores.scores == pytest.approx(small_scores.scores, abs=1e-4)
    (swapped,) = judge.judge(small[..., ::-1])
    assert swapped.scores != pytest.approx(small_scores.scores, abs=1e-2)  # the order of colors matters


def test_weights_that_are_missing_or_of_another_model_are_refused(clip_folder, tmp_path):
    config = json.loads((clip_folder / "config.json").read_text())
    weights = load_file(clip_folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot be loaded"):
        clip(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((clip_folder / "preprocessor_config.json").read_text())
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lack visual_projection.weight"):
        clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(InputError, match="type 'siglip'; it must be clip"):
        clip(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": None}, "model is None; it must be the folder of a CLIP model"),
        ({"model": "owner/name"}, "model is 'owner/name'; it must be the folder"),
        ({"classes": ["cat"]}, "at least two different classes"),
        ({"classes": ["cat", "cat"]}, "at least two different classes"),
        ({"template": "a photo"}, "must contain {}"),
        ({"concept": ["dog"]}, '"dog"; did you mean|"dog"; allowed: cat, red apple, glossy 3d'),
        ({"column": "thing", "threshold": 0.5}, "need a judge without column"),
        ({"threshold": 2}, "must be at most 1"),
        ({"device": "gpu"}, "judge_settings.device is 'gpu'"),
        ({"classes": ["cat", "cat " * 40]}, "a text of .* tokens; it must be at most 24"),
    ],
)
def test_wrong_settings_of_clip_are_refused(clip_folder, settings, message):
    with pytest.raises(InputError, match=message):
        clip(clip_folder, **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.p", b"", r"must be a .npy or .safetensors file"),
        ("no.npy", None, "No such file"),
        ("broken.npy", b"x", "embeddings is"),
        ("wide.npy", np.zeros((2, 768)), "of width 768; .* have width 12"),
        ("three.npy", np.zeros((3, WIDTH)), r"of shape \[3, 12\]"),
        ("nan.npy", np.full((2, WIDTH), np.nan), "of shape"),
        ("object.npy", np.array([{}, {}]), "embeddings is"),
        ("broken.safetensors", b"x", "embeddings is"),
    ],
)
def test_wrong_embeddings_of_q16_are_refused(clip_folder, tmp_path, name, content, message):
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_judge("q16", json.dumps({"model": str(clip_folder), "embeddings": str(tmp_path / name), "device": "cpu"}))
