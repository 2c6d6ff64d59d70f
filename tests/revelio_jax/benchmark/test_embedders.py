"""Embedders on small models of random weights against a direct computation, and folders that are refused."""

import pathlib

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from revelio_jax.benchmark import miniature_judge
from revelio_jax.benchmark.embedders import open_embedder
from revelio_jax.errors import InputError
from tests.helpers import MINIATURES

FIELD = "config.interpret.embedder"
SIDE = 32
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "apple", "a"]


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    return [PIL.Image.fromarray(each) for each in pixels]


@pytest.fixture(scope="module")
def pixels(images) -> torch.Tensor:
    """The images as the networks see them, [3, 3, 32, 32]."""
    x = torch.tensor(np.stack([np.asarray(image) for image in images])) / 255
    return ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    processor = transformers.BitImageProcessorPil if hasattr(transformers, "BitImageProcessorPil") else None
    processor = processor or transformers.BitImageProcessor
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor(**size, image_mean=MEAN, image_std=STD).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> pathlib.Path:
    """A sentence encoder in the layout of all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(vocab=dict(zip(WORDS, range(len(WORDS)), strict=True))).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZES)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_dino_embeds_images_by_the_token_cls(dino, images, pixels):
    model = transformers.Dinov2Model.from_pretrained(dino).eval()
    expected = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(open_embedder(dino, "image", "cpu", FIELD)(images), expected, atol=1e-4)


@torch.no_grad()
def test_sentences_are_means_over_their_tokens_without_padding(encoder):
    model = transformers.BertModel.from_pretrained(encoder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    texts = ["red", "a red apple " * 9, "a apple"]  # the second is truncated
    ids = [tokenizer(text, truncation=True, max_length=16, return_tensors="pt").input_ids for text in texts]
    expected = torch.cat([model(each).last_hidden_state.mean(1) for each in ids]).numpy()
    np.testing.assert_allclose(open_embedder(encoder, "text", "cpu", FIELD)(texts), expected, atol=1e-5)


@torch.no_grad()
def test_the_judge_embeds_images_by_its_features(images):
    judge = miniature_judge.load(MINIATURES / "sd")
    x = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1
    embed = open_embedder(MINIATURES / "sd", "image", "cpu", FIELD)
    np.testing.assert_allclose(embed(images), judge.features(x).numpy(), atol=1e-5)
    with pytest.raises(InputError, match="an image has 16 x 8"):
        embed([PIL.Image.new("RGB", (16, 8))])


@pytest.mark.slow
@torch.no_grad()
def test_clip_embeds_images_and_texts(tmp_path, images, pixels, encoder):
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    vision = SIZES | {"image_size": SIDE, "patch_size": 8}
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    ).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    expected = model.visual_projection(model.vision_model(pixels).pooler_output).numpy()
    np.testing.assert_allclose(open_embedder(tmp_path, "image", "cpu", FIELD)(images), expected, atol=1e-4)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)("a red apple", return_tensors="pt").input_ids
    expected = model.text_projection(model.text_model(ids).pooler_output).numpy()
    embedded = open_embedder(tmp_path, "text", "cpu", FIELD)(["a red apple", "red"])
    np.testing.assert_allclose(embedded[:1], expected, atol=1e-4)


def test_models_of_other_samples_are_refused(dino, encoder):
    for folder, kind in ((dino, "text"), (encoder, "image"), (MINIATURES / "sd", "text")):
        with pytest.raises(InputError, match=r"config\.interpret\.embedder is .*cannot embed"):
            open_embedder(folder, kind, "cpu", FIELD)
