"""Tiny pipelines of every family: real components, random weights, a fitted tokenizer."""

import csv
import os
import pathlib

import pytest
import torch
import transformers

from extract.miniature import tokenizer
from extract.pipelines import TextEncoder

CAPTIONS = [
    f"a {style} emoji of {thing}" for style in ("flat", "glossy 3d") for thing in ("cat", "red apple")
]
LAYERS, WIDTH = 3, 16

# Models this small are faster so; here, and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def fitted():
    """CLIP's tokenizer, fitted on a few captions."""
    return tokenizer.fit(CAPTIONS)


@pytest.fixture(scope="session")
def make_clip(fitted):
    """A function that makes a CLIP text encoder whose layers differ."""

    def make(width: int = WIDTH, layers: int = LAYERS, projection: bool = False):
        config = transformers.CLIPTextConfig(
            vocab_size=len(fitted),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            projection_dim=width,
            max_position_embeddings=fitted.model_max_length,
            bos_token_id=fitted.bos_token_id,
            eos_token_id=fitted.eos_token_id,
            pad_token_id=fitted.pad_token_id,
            initializer_factor=5.0,
        )
        torch.manual_seed(width)
        cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
        return cls(config).eval()

    return make


@pytest.fixture(scope="session")
def t5() -> TextEncoder:
    """T5 and a tokenizer of single letters, 10 positions."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    letters = transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=10)
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    return TextEncoder("text_encoder_2", transformers.T5EncoderModel(config).eval(), letters)


@pytest.fixture(scope="session")
def bert() -> TextEncoder:
    """A BERT of few words, as a text encoder of its own."""
    words = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "red"])
    }
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    return TextEncoder("encoder", model, transformers.BertTokenizer(vocab=words, model_max_length=12), "text")


@pytest.fixture(scope="session")
def sd(fitted, make_clip):
    """A StableDiffusionPipeline of 32 pixels."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4),
        text_encoder=make_clip(),
        tokenizer=fitted,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def sd_folder(sd, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    sd.save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    """A csv of 10 labelled prompts of different lengths, the empty one among them."""
    path = tmp_path / "prompts.csv"
    rows = [["prompt", "style"], ["", "none"]]
    rows += [[" ".join(["cat"] * n), f"style {n % 2}"] for n in range(1, 10)]
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path
