"""config.benchmark.quality: figures of images on disk against the functions on features, and wrong input."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import save_file

from revelio_jax.benchmark import lpips, quality, quality_measures
from revelio_jax.benchmark.clip_judge import ImageEncoder
from revelio_jax.benchmark.features import ClipFeatures, EmbedderFeatures
from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.measurement import interval
from revelio_jax.benchmark.quality_measures import check_measures, measure_quality, parse_measures
from revelio_jax.benchmark.tasks import OTHER, TaskPrompt
from revelio_jax.errors import InputError
from tests.helpers.tiny_clip import SIDE, WIDTH

SEEDS, PROMPTS = 4, 6
FLAGGED = 5  # of the method's images


@pytest.fixture(scope="module")
def shots() -> list[Shot]:
    words = ("cat", "red apple", "flat", "glossy 3d", "a cat", "cat " * 60)  # the last one is cut off
    prompts = [TaskPrompt("coco", str(i), OTHER, word, 7, 2.5, SIDE, SIDE) for i, word in enumerate(words)]
    return [Shot(prompt, seed) for prompt in prompts for seed in range(SEEDS)]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """The images of the plain pipeline and of a method: uint8 [2, images, 32, 32, 3]."""
    return np.random.default_rng(0).integers(0, 256, (2, PROMPTS * SEEDS, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def folders(shots, pixels, tmp_path):
    folders = [ImageFolder(tmp_path / "images", key) for key in ("plain", "method")]
    for folder, own in zip(folders, pixels, strict=True):
        for number, (shot, image) in enumerate(zip(shots, own, strict=True)):
            folder.write(shot, image, flagged=folder.path.name == "method" and number == FLAGGED)
    return folders


@pytest.fixture
def measured(folders, shots, tmp_path):
    """A function that returns the figures of the method for texts of config.benchmark.quality."""

    def run(*texts):
        measures = parse_measures(texts)
        check_measures(measures, {"flat": shots})
        for each in measures:
            each.load()
        check_measures(measures, {"flat": shots})
        plain, method = folders
        return measure_quality(measures, method, plain, shots, SEEDS, tmp_path / "features")

    return run


def by_prompt(values):
    """Return the interval over the prompts of values of all images, without the flagged one."""
    values = np.array(values, float)
    values[FLAGGED] = np.nan
    return interval(np.nanmean(values.reshape(-1, SEEDS), 1))


def test_a_measure_can_use_one_prompt_set(measured, shots, folders, clip_folder, tmp_path):
    text = f"clip model={clip_folder} device=cpu"
    wanted = measured(text)
    other = [Shot(dataclasses.replace(shot.prompt, set="labeled"), shot.seed) for shot in shots]
    (measure,) = parse_measures([f"{text} set=coco"])
    check_measures([measure], {"flat": other + shots})
    measure.load()
    plain, method = folders
    assert measure_quality([measure], method, plain, other + shots, SEEDS, tmp_path / "features") == wanted
    assert measure.record["set"] == "coco"
    with pytest.raises(InputError, match=r"set=coco needs at least 2 prompts .* flat has some in: labeled;"):
        check_measures([measure], {"flat": other})


@torch.no_grad()
def test_clip_score_and_cosine(measured, shots, pixels, clip_folder):
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    plain, method = (ImageEncoder(clip_folder, "cpu").embed_images(each).numpy() for each in pixels)
    most = model.config.text_config.max_position_embeddings
    ids = [
        tokenizer(shot.prompt.prompt, truncation=True, max_length=most, return_tensors="pt").input_ids for shot in shots
    ]
    texts = np.concatenate([model.text_projection(model.text_model(each).pooler_output).numpy() for each in ids])
    figures = measured(f"clip model={clip_folder} device=cpu")
    assert list(figures) == ["CLIP score", "CLIP cosine to plain"]
    wanted = by_prompt(quality.clip_scores(method, texts)), by_prompt(quality.cosines(method, plain))
    for figure, expected in zip(figures.values(), wanted, strict=True):
        assert figure.pop("images") == PROMPTS * SEEDS - 1
        assert figure == pytest.approx(expected, rel=1e-4)


def test_features_are_saved(measured, clip_folder, folders, monkeypatch):
    texts = (f"clip model={clip_folder} device=cpu", f"frechet model={clip_folder} device=cpu")
    first = measured(*texts)

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(ClipFeatures, "features", fail)
    monkeypatch.setattr(EmbedderFeatures, "features", fail)
    for folder in folders:
        for path in folder.path.iterdir():
            path.unlink()  # not even read
    assert measured(*texts) == first


def test_frechet_distance_is_that_to_the_plain_images(measured, pixels, clip_folder):
    network = EmbedderFeatures(clip_folder, "clip", "cpu", "x")
    plain, method = (network.features(list(each)) for each in pixels)
    figures = measured(f"frechet model={clip_folder} device=cpu")
    wanted = quality.frechet_distance(np.delete(method, FLAGGED, 0), plain)
    assert figures == {
        "Fréchet distance (clip) to plain": {
            "mean": pytest.approx(wanted, rel=1e-4),
            "low": None,
            "high": None,
            "images": PROMPTS * SEEDS - 1,
        }
    }


def test_frechet_distance_to_a_folder_of_images_of_any_size(measured, pixels, clip_folder, tmp_path):
    (tmp_path / "coco").mkdir()
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (40, 30 + number, 3), np.uint8) for number in range(WIDTH + 1)]
    for number, image in enumerate(images):
        PIL.Image.fromarray(image).save(tmp_path / "coco" / f"{number:02}.png")
    network = EmbedderFeatures(clip_folder, "clip", "cpu", "x")
    wanted = quality.frechet_distance(
        np.delete(network.features(list(pixels[1])), FLAGGED, 0), network.features(images)
    )
    text = f"frechet model={clip_folder} reference={tmp_path / 'coco'} device=cpu"
    assert measured(text)["Fréchet distance (clip)"]["mean"] == pytest.approx(wanted, rel=1e-4)
    (measure,) = parse_measures([text])
    measure.load()
    assert measure.record["reference"]["images"] == WIDTH + 1
    assert set(measure.record["weights"]) == {"model.safetensors", "preprocessor_config.json"}
    (tmp_path / "coco" / "00.png").unlink()
    with pytest.raises(InputError, match="more images than its 12 features; the reference has 12 images"):
        measured(text)


def test_fid_is_the_distance_of_the_features_of_inception(measured, pixels, alexnet, monkeypatch):
    class Inception:
        """The means of rows of pixels, instead of a network of 90 MB that needs 2,049 images."""

        width, record = 8, {"name": "InceptionV3", "weights": {"inception.safetensors": "12ab"}}

        def __init__(self, *_):
            pass

        def features(self, images):
            return np.stack([image[:8].mean((1, 2)) for image in images]).astype(np.float32)

    monkeypatch.setattr(quality_measures, "InceptionV3", Inception)
    plain, method = (Inception().features(each) for each in pixels)
    text = f"fid features={alexnet[1]} device=cpu"
    wanted = quality.frechet_distance(np.delete(method, FLAGGED, 0), plain)
    assert measured(text)["FID to plain"]["mean"] == pytest.approx(wanted, rel=1e-5)
    (measure,) = parse_measures([text])
    assert measure.record == Inception.record | {"reference": "plain", "set": None}


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """Two files for LPIPS, with random weights."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    tensors = {}
    for layer in lpips.LAYERS:
        shape = (layer.outputs, layer.inputs, layer.kernel, layer.kernel)
        tensors[f"features.{layer.number}.weight"] = 0.1 * torch.randn(shape, generator=generator)
        tensors[f"features.{layer.number}.bias"] = torch.zeros(layer.outputs)
    save_file(tensors, folder / "alexnet.safetensors")
    weights = {f"lin{i}.model.1.weight": torch.ones(1, each.outputs, 1, 1) for i, each in enumerate(lpips.LAYERS)}
    save_file(weights, folder / "lpips.safetensors")
    return folder / "alexnet.safetensors", folder / "lpips.safetensors"


def test_lpips_is_the_distance_to_the_plain_image(measured, shots, pixels, alexnet, monkeypatch):
    text = "lpips backbone={} weights={} device=cpu".format(*alexnet)
    plain, method = pixels
    wanted = by_prompt(lpips.Lpips(*alexnet, torch.device("cpu")).distances(method, plain))
    (figure,) = measured(text).values()
    assert figure == pytest.approx({**wanted, "images": PROMPTS * SEEDS - 1}, rel=1e-5)
    monkeypatch.setattr(lpips.Lpips, "distances", None)
    assert list(measured(text).values()) == [figure]  # saved
    (measure,) = parse_measures([text])
    small = [Shot(TaskPrompt("coco", "0", OTHER, "cat", 7, 2.5, 64, 24), 0)]
    with pytest.raises(InputError, match=r"at least 31 x 31 pixels; a prompt of coco has 64 x 24"):
        measure.check(small)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fidd features=x", "did you mean fid"),
        ("fid", r"quality: fid.features is None; it must be a .safetensors file"),
        ("fid features=weights.pth", "weights.pth'; it must be a .safetensors file"),
        ("fid features=NOTHING", r"fid: .*broken.safetensors cannot be read"),
        ("fid features=LPIPS", r"quality: fid: .*tensor Conv2d_1a_3x3.conv.weight is missing"),
        ("fid features=LPIPS reference=nowhere", "fid.reference is 'nowhere'; it must be a folder of images"),
        ("fid features=LPIPS reference=EMPTY", r"fid.reference .*the folder has no images"),
        ("fid feature=x", "did you mean features"),
        ("clip", "clip.model is None; it must be the folder of a CLIP model"),
        ("clip model=owner/name", "must be the folder of a CLIP model"),
        ("clip model=CLIP device=gpu", "clip.device is 'gpu'"),
        ("frechet model=EMPTY", r"frechet.model is .*must be the folder of an image model"),
        ("lpips weights=LPIPS", "lpips.backbone is None"),
        ("lpips backbone=LPIPS weights=LPIPS", r"lpips: .*features.0.weight is missing"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_loaded(text, message, alexnet, clip_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quality_measures, "ImageEncoder", None)
    monkeypatch.setattr(quality_measures, "EmbedderFeatures", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 20)
    names = {"EMPTY": tmp_path / "empty", "NOTHING": tmp_path / "broken.safetensors", "LPIPS": alexnet[1]}
    for name, path in (names | {"CLIP": clip_folder}).items():
        text = text.replace(name, str(path))
    with pytest.raises(InputError, match=message) as caught:
        parse_measures([text])
    assert "\n" not in str(caught.value)


def test_folders_of_other_models_are_refused(clip_folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for name in ("clip", "frechet"):
        (measure,) = parse_measures([f"{name} model={tmp_path} device=cpu"])
        with pytest.raises(InputError, match=rf"quality: {name}.model is "):
            measure.load()


def test_too_few_images_and_tasks_without_other_prompts_are_refused(measured, shots, clip_folder):
    measures = parse_measures([f"frechet model={clip_folder} device=cpu"])
    with pytest.raises(InputError, match=r"at least 2 prompts with the role other, .* flat has some in: none"):
        check_measures(measures, {"flat": []})
    measures[0].load()
    few = [*shots[:WIDTH], *shots[:WIDTH]]  # the same image twice counts once
    with pytest.raises(InputError, match="more images than its 12 features; the prompts with the role other have 12"):
        check_measures(measures, {"flat": few})
    with pytest.raises(InputError, match="another entry gives 'CLIP score' too"):
        parse_measures([f"clip model={clip_folder}", f"clip model={clip_folder} device=cpu"])
