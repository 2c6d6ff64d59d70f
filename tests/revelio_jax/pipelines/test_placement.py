"""config.model.compile and offload give the same activations and images; unsupported combinations are refused."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from extract import run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import sample
from revelio_jax.store import open_store
from tests.helpers import MINIATURES

SITES = {
    "sd": ("unet.down_blocks.0.attentions.0", "unet.mid_block"),
    "flux": ("flux.double.0.image", "flux.single.0.text"),
}
# Compiling takes seconds a block: one hook point, after which the pass ends.
FIRST_SITE = {"sd": ("unet.down_blocks.0.attentions.0",), "flux": ("flux.double.0.image",)}


@pytest.fixture
def activations(folder, image_folder, prompts, tmp_path):
    """Return a function that extracts with other fields of config.model and returns the rows of every hook point."""

    def make(family: str, mode: str, sites=SITES, **fields) -> list[np.ndarray]:
        extract = ExtractConfig(
            mode=mode,
            images=str(image_folder),
            prompts=str(prompts),
            sites=("clip.layer.0",) if mode == "text" else sites[family],
            timesteps=(0, 500) if mode == "noised" else (),
            steps=2,
            height=8,
            width=8,
            store=str(tmp_path / "-".join(["store", *map(str, fields.values())])),
        )
        model = ModelConfig(id=str(folder(family)), family=family, device="cpu", **fields)
        manifest = run.extract(Config(model=model, extract=extract))
        assert manifest["model"].get("compile", False) is model.compile
        sites = [open_store(extract.store).site(name) for name in extract.sites]
        return [site.read(0, site.rows) for site in sites]

    return make


@pytest.mark.parametrize("offload", ["model", "sequential"])
@pytest.mark.parametrize(
    ("family", "mode"), [("sd", "text"), ("sd", "noised"), ("sd", "generate"), ("flux", "generate")]
)
def test_offload_changes_no_bit(activations, family, mode, offload):
    plain, offloaded = activations(family, mode), activations(family, mode, offload=offload)
    for a, b in zip(plain, offloaded, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs g++, which is not installed")
@pytest.mark.parametrize(("family", "mode"), [("sd", "noised"), ("flux", "noised")])
def test_compiled_blocks_give_the_same_rows_up_to_rounding(activations, family, mode):
    plain, compiled = (activations(family, mode, FIRST_SITE, compile=compiled) for compiled in (False, True))
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_compiled_run_does_not_continue_a_store_made_without(activations, tmp_path):
    activations("sd", "text")
    shutil.move(tmp_path / "store", tmp_path / "store-True")
    with pytest.raises(InputError, match=r"model\.compile"):
        activations("sd", "text", compile=True)


def test_compile_with_sequential_offload_is_refused():
    with pytest.raises(InputError, match="with compile, offload must be none or model"):
        dataclasses.replace(ModelConfig(), compile=True, offload="sequential")


SETTINGS = {"steps": 2, "guidance": 2.5, "height": 32, "width": 32, "batch_size": 2}
PROMPTS = ["glossy 3d emoji of red apple", "flat emoji of cat"]


def loaded(family: str, **fields):
    return load_pipeline(ModelConfig(id=str(MINIATURES / family), family=family, device="cpu", **fields))


@pytest.mark.parametrize(("family", "site"), [("sd", "clip.layer.1"), ("sd", "unet.mid_block"), ("flux", "t5.block.1")])
def test_images_with_and_without_steering_do_not_depend_on_offload(family, site, make_steerer):
    images = {}
    for offload in ("none", "model", "sequential"):
        pipe = loaded(family, offload=offload)
        steerer = make_steerer(pipe, site)
        plain = sample(pipe, PROMPTS, [0, 1], **SETTINGS).images
        with steerer.attach(pipe, dict.fromkeys(range(steerer.sae.n_latents), 4.0)):
            steered = sample(pipe, PROMPTS, [0, 1], **SETTINGS).images
        assert (plain != steered).any()
        images[offload] = (plain, steered)
    for offload in ("model", "sequential"):
        np.testing.assert_array_equal(images[offload], images["none"])


def test_offload_keeps_one_component_on_the_device_in_any_order():
    """A pass may end early, and steering runs text encoders by themselves."""
    pipe = loaded("flux", offload="model")
    running = pipe.transformer._hf_hook.running
    sample(pipe, PROMPTS, [0, 1], **SETTINGS)
    assert running == [pipe.vae]
    ids = torch.zeros(1, 4, dtype=torch.long)
    with torch.inference_mode():
        pipe.text_encoder_2(ids)
        assert running == [pipe.text_encoder_2]
        pipe.text_encoder(ids)
    assert running == [pipe.text_encoder]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs g++, which is not installed")
def test_images_of_compiled_blocks_are_the_same_up_to_rounding(make_steerer):
    images = []
    for compile in (False, True):
        pipe = loaded("sd", compile=compile)
        steerer = make_steerer(pipe, "clip.layer.1")
        with steerer.attach(pipe, {3: 4.0}):
            images.append(sample(pipe, PROMPTS, [0, 1], **SETTINGS).images.astype(int))
    assert np.abs(images[1] - images[0]).max() <= 1
