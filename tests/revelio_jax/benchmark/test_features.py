"""Features from folders of weights: small random networks in the files that users have, against clean-fid,
transformers and torchmetrics."""

import pathlib
import shutil

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from revelio_jax.benchmark import features, quality
from revelio_jax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
PLAIN = (IMAGES + np.random.default_rng(1).integers(-40, 41, IMAGES.shape)).clip(0, 255).astype(np.uint8)


class Base(nn.Module):
    """The interface of inception-2015-12-05.pt, with one layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 16, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(16), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def inception_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inception")
    torch.jit.script(Base()).save(str(folder / features.INCEPTION))
    return str(folder)


def test_inception_features_are_those_of_clean_fid(inception_folder):
    reason = "clean-fid is not installed: see launch/test.sh"
    resize = pytest.importorskip("cleanfid.resize", reason=reason)
    network = pytest.importorskip("cleanfid.inception_torchscript", reason=reason)
    scaled = np.stack([resize.build_resizer("clean")(image) for image in IMAGES]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = network.InceptionV3W(inception_folder, download=False)(torch.from_numpy(scaled)).numpy()
    assert wanted.shape == (3, 2048)
    found = features.Inception(inception_folder).images(IMAGES)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.ptp(found) > 0.1


def test_inception_is_refused_without_its_file(tmp_path):
    with pytest.raises(InputError, match=r"FID: '.*none' is not a folder"):
        features.Inception(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"has no inception-2015-12-05\.pt"):
        features.Inception(str(tmp_path))
    torch.save({"a": torch.zeros(1)}, tmp_path / features.INCEPTION)
    with pytest.raises(InputError, match="is not the TorchScript file of InceptionV3"):
        features.Inception(str(tmp_path))


@pytest.fixture(scope="module")
def clip_folder(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(fitted),
        "max_position_embeddings": fitted.model_max_length,
        "bos_token_id": fitted.bos_token_id,
        "eos_token_id": fitted.eos_token_id,
        "pad_token_id": fitted.pad_token_id,
    }
    vision = small | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12, initializer_factor=20.0)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    fitted.save_pretrained(folder)
    return str(folder)


TEXTS = ["a red heart", "a photo of a dog", "a " * 200]


@pytest.mark.slow
def test_clip_scores_are_those_of_torchmetrics(clip_folder):
    """torchmetrics 1.9 takes the embeddings as tensors, which transformers 5 wraps in an output object."""
    multimodal = pytest.importorskip(
        "torchmetrics.functional.multimodal.clip_score", reason="torchmetrics is not installed: see launch/test.sh"
    )
    encoder = features.ClipEncoder(clip_folder)

    class Tensors:
        config = encoder.model.config

        def to(self, device):
            return self

        def get_image_features(self, pixels):
            return encoder.model.get_image_features(pixel_values=pixels).pooler_output

        def get_text_features(self, ids, mask):
            return encoder.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    processor = transformers.CLIPProcessor(encoder.processor, tokenizer)
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in IMAGES]
    found = quality.clip_scores(encoder.images(IMAGES), encoder.texts(TEXTS))
    with torch.inference_mode():
        wanted = [
            float(multimodal._clip_score_update([image], [text], Tensors(), processor)[0])
            for image, text in zip(images[:2], TEXTS[:2], strict=True)  # it cuts a long text without its end marker
        ]
    np.testing.assert_allclose(found[:2], wanted, atol=1e-3)
    assert abs(found).max() > 1


def test_features_do_not_depend_on_the_batch(clip_folder, monkeypatch):
    encoder = features.ClipEncoder(clip_folder)
    together = encoder.images(IMAGES), encoder.texts(TEXTS)
    monkeypatch.setattr(features, "BATCH", 1)
    for found, wanted in zip((encoder.images(IMAGES), encoder.texts(TEXTS)), together, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert [len(rows) for rows in together] == [3, 3]


def test_another_image_model_gives_its_pooled_output(tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = transformers.BitImageProcessor(**size)
    processor.save_pretrained(tmp_path)
    encoder = features.ImageEncoder(str(tmp_path))
    with torch.inference_mode():
        pixels = processor(images=list(IMAGES), return_tensors="pt")["pixel_values"]
        wanted = model(pixels).pooler_output.numpy()
    np.testing.assert_allclose(encoder.images(IMAGES), wanted, atol=1e-5)
    assert (quality.cosines(encoder.images(IMAGES), encoder.images(PLAIN)) < 1).all()
    with pytest.raises(InputError, match="has no tokenizer, which CLIP scores need"):
        features.ClipEncoder(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder; it must be a folder with the weights"):
        features.ImageEncoder("openai/clip-vit-large-patch14")
    with pytest.raises(InputError, match=r"has no config\.json"):
        features.ImageEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no image model that transformers can load"):
        features.ImageEncoder(str(tmp_path))


def convolutions(name: str) -> nn.Sequential:
    """Return the part `features` of torchvision's AlexNet or VGG16, with random weights."""
    torch.manual_seed(0)
    if name == "alex":
        shapes = [(3, 64, 11, 4, 2), "M", (64, 192, 5, 1, 2), "M", (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
        shapes += [(256, 256, 3, 1, 1), "M"]
    else:
        widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
        shapes, channels = [], 3
        for width in widths:
            shapes.append("M" if width == "M" else (channels, width, 3, 1, 1))
            channels = channels if width == "M" else width
    layers: list[nn.Module] = []
    for shape in shapes:
        pool = nn.MaxPool2d(3 if name == "alex" else 2, 2)
        layers += [pool] if shape == "M" else [nn.Conv2d(*shape), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_is_that_of_torchmetrics(name, tmp_path, monkeypatch):
    """torchmetrics gets the network from torchvision, which is replaced here; it ships the weights of the channels."""
    lpips = pytest.importorskip(
        "torchmetrics.functional.image.lpips", reason="torchmetrics is not installed: see launch/test.sh"
    )
    network = convolutions(name)
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: network)
    shutil.copy(pathlib.Path(lpips.__file__).parent / "lpips_models" / f"{name}.pth", tmp_path)
    torch.save({f"features.{key}": value for key, value in network.state_dict().items()}, tmp_path / "network.pth")

    found = features.LpipsNetwork(str(tmp_path)).distances(IMAGES, PLAIN)
    signed = [torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1 for images in (IMAGES, PLAIN)]
    with torch.inference_mode():
        wanted = lpips._LPIPS(net=name)(*signed).flatten().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert (found > 1e-4).all()


def test_lpips_weights_that_do_not_fit_are_refused(tmp_path):
    network = {f"features.{key}": value for key, value in convolutions("alex").state_dict().items()}
    with pytest.raises(InputError, match="has no weights of AlexNet or VGG16"):
        features.LpipsNetwork(str(tmp_path))
    torch.save(network, tmp_path / "network.pth")
    with pytest.raises(InputError, match=r"no lin0\.model\.1\.weight; add the file of LPIPS's channel weights"):
        features.LpipsNetwork(str(tmp_path))
    linear = {f"lin{layer}.model.1.weight": torch.ones(1, 7, 1, 1) for layer in range(5)}
    torch.save(linear, tmp_path / "linear.pth")
    with pytest.raises(InputError, match=r"lin0\.model\.1\.weight has 7 weights for the 64 channels of alexnet"):
        features.LpipsNetwork(str(tmp_path))
    widths = (64, 192, 384, 256, 256)
    linear = {f"lin{layer}.model.1.weight": torch.ones(1, width, 1, 1) for layer, width in enumerate(widths)}
    torch.save(linear, tmp_path / "linear.pth")
    loaded = features.LpipsNetwork(str(tmp_path))
    with pytest.raises(InputError, match="LPIPS needs equal shapes of at least 32 pixels"):
        loaded.distances(IMAGES[:, :16], PLAIN[:, :16])
    (tmp_path / "linear.pth").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"linear\.pth is not a file of weights"):
        features.LpipsNetwork(str(tmp_path))


def test_images_must_be_uint8(clip_folder):
    with pytest.raises(InputError, match=r"images are float64 \(3, 40, 56, 3\); they must be uint8"):
        features.ImageEncoder(clip_folder).images(IMAGES / 255)
