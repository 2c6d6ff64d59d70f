"""Tiny pipelines of every family: real components, random weights, a fitted tokenizer."""

import csv
import functools
import json
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from extract.miniature import tokenizer
from extract.pipelines import TextEncoder
from revelio_jax.store import open_store

CAPTIONS = [
    f"a {style} emoji of {thing}" for style in ("flat", "glossy 3d") for thing in ("cat", "red apple")
]
LAYERS, WIDTH = 3, 16
CLASSES = {0: "tench", 1: "goldfish", 2: "hen, biddy"}

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


@pytest.fixture(scope="session")
def vae():
    import diffusers

    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.1
    ).eval()


@pytest.fixture(scope="session")
def sdxl(fitted, make_clip, vae):
    """A StableDiffusionXLPipeline whose two text encoders are of width 16 and 8."""
    import diffusers

    second = make_clip(width=8, projection=True)
    torch.manual_seed(0)
    return diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=make_clip(),
        text_encoder_2=second,
        tokenizer=fitted,
        tokenizer_2=fitted,
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 8,
        ).eval(),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def flux(fitted, make_clip, t5, vae):
    """A FluxPipeline of two blocks of each kind."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=make_clip(),
        tokenizer=fitted,
        text_encoder_2=t5.model,
        tokenizer_2=t5.tokenizer,
        transformer=transformer,
    )


@pytest.fixture(scope="session")
def dit(vae):
    """A DiTPipeline of 8 pixels and three blocks, which knows three classes by name."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
    ).eval()
    # As training leaves them they are zero at first, and then no block changes anything.
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(), CLASSES)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, request):
    """A function that saves the pipeline of a family and returns its folder."""

    @functools.cache
    def save(family: str) -> pathlib.Path:
        path = tmp_path_factory.mktemp("pipelines") / family
        pipe = request.getfixturevalue(family)
        pipe.save_pretrained(path)
        if family == "dit":  # diffusers reads the names of classes from here, but does not write them
            index = json.loads((path / "model_index.json").read_text())
            index["id2label"] = CLASSES
            (path / "model_index.json").write_text(json.dumps(index))
        return path

    return save


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    """A csv of 10 labelled prompts of different lengths, the empty one among them."""
    path = tmp_path / "prompts.csv"
    rows = [["prompt", "style"], ["", "none"]]
    rows += [[" ".join(["cat"] * n), f"style {n % 2}"] for n in range(1, 10)]
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> pathlib.Path:
    """Five pictures of several sizes and modes in folders of two labels; the second cannot be decoded."""
    path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, size, mode in [
        ("cat/a.png", (12, 8), "RGB"),
        ("cat/c.png", (8, 8), "L"),
        ("dog/a.jpg", (9, 20), "RGB"),
        ("dog/b.png", (30, 30), "RGBA"),
    ]:
        (path / name).parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).convert(mode).save(path / name)
    (path / "cat/b.png").write_bytes((path / "cat/a.png").read_bytes()[:60])
    (path / "cat/notes.txt").write_text("no picture")
    return path


@pytest.fixture(scope="session")
def read_rows():
    """A function that reads all of a site: activations [rows, d] and [rows, (sample, timestep, position)]."""

    def read(location, name: str = ""):
        site = open_store(str(location)).site(name)
        values = [site.read(*chunk) for chunk in site.chunks]
        index = [
            np.stack([site.read_index(key, *chunk) for key in ("sample", "timestep", "position")], 1)
            for chunk in site.chunks
        ]
        return np.concatenate(values), np.concatenate(index)

    return read


@pytest.fixture
def called():
    """A list that gains every module that is called, in order."""
    modules = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: modules.append(module)
    )
    yield modules
    handle.remove()
