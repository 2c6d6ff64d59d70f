"""Extraction from a pipeline that the caller has built: it is used as it is, and restored."""

import copy
import csv
import json

import diffusers
import numpy as np
import pytest
import torch

from extract import run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.steering import Steerer
from revelio_jax.steering.sae import Sae
from revelio_jax.store import open_store
from tests.helpers.pipelines import similarities, with_safety_checker
from tests.helpers.steering import OFFLOADS, by_model

SITES = {
    ("sd", "text"): ("clip.layer.1",),
    ("sd", "generate"): ("unet.mid_block",),
    ("sd", "noised"): ("unet.mid_block",),
    ("sdxl", "text"): ("clip_l.layer.1+clip_g.layer.1",),
    ("flux", "text"): ("t5.block.1",),
    ("flux", "generate"): ("flux.double.1.text",),
    ("flux", "noised"): ("flux.single.1.image",),
    ("dit", "generate"): ("dit.block.2",),
}


@pytest.fixture
def config(tmp_path, image_folder):
    """Return a function that returns a config without a model."""

    def make(family: str, mode: str, **fields) -> Config:
        prompts = tmp_path / f"{family}.csv"
        with prompts.open("w", newline="") as file:
            lines = ["goldfish", "biddy", "tench"] if family == "dit" else ["cat", "red apple", "glossy cat"]
            csv.writer(file).writerows([["prompt"], *([line] for line in lines)])
        base = {
            "mode": mode,
            "prompts": str(prompts),
            "images": str(image_folder),
            "timesteps": (5, 500) if mode == "noised" else (),
            "sites": SITES[family, mode],
            "steps": 2,
            "height": 8,
            "width": 8,
            "batch_size": 2,
            "shard_samples": 2,
            "store": str(tmp_path / "given"),
        }
        return Config(extract=ExtractConfig(**base | fields))

    return make


@pytest.fixture
def own(request):
    """Return a function that copies the tiny pipeline of a family."""

    def copied(family: str):
        pipe = request.getfixturevalue(family)
        parts = {name: copy.deepcopy(part) for name, part in pipe.components.items()}
        if family == "dit":
            return diffusers.DiTPipeline(**parts, id2label={0: "tench", 1: "goldfish", 2: "hen, biddy"})
        options = {"requires_safety_checker": False} if family == "sd" else {}
        return type(pipe)(**parts, **options)

    return copied


def rows(config: Config, pipe=None) -> np.ndarray:
    run.extract(config, pipe=pipe)
    site = open_store(config.extract.store).site()
    return site.read(0, site.rows)


def record(config: Config) -> dict:
    return open_store(config.extract.store).manifest["model"]


def state(pipe) -> dict:
    """Return everything that extraction must leave as it is."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "class": type(pipe),
        "bars": vars(pipe).get("_progress_bar_config"),
        "components": {name: id(part) for name, part in pipe.components.items()},
        "timesteps": pipe.scheduler.timesteps.tolist(),
        "training": [(name, inner.training) for part in modules.values() for name, inner in part.named_modules()],
        "hooks": [
            (name, len(inner._forward_hooks), len(inner._forward_pre_hooks), id(vars(inner).get("_hf_hook")))
            for part in modules.values()
            for name, inner in part.named_modules()
        ],
        "weights": [(p.device, p.dtype, p.shape) for part in modules.values() for p in part.parameters()],
    }


@pytest.mark.parametrize(("family", "mode"), SITES)
def test_a_given_pipeline_gives_the_rows_of_its_folder_and_is_restored(own, config, folder, family, mode, tmp_path):
    pipe = own(family)
    pipe.vae.train()
    before = state(pipe)
    given = rows(config(family, mode), pipe)
    assert state(pipe) == before
    from_folder = config(family, mode, store=str(tmp_path / "folder"))
    model = ModelConfig(id=str(folder(family)), family=family, device="cpu")
    loaded = rows(Config(model=model, extract=from_folder.extract))
    np.testing.assert_allclose(given, loaded, atol=1e-5)  # kernels round by the alignment of the weights
    found = record(config(family, mode))
    assert found["pipeline"] == type(pipe).__name__
    assert (found["family"], found["dtype"], found["device"]) == (family, "float32", "cpu")
    assert "pipeline" not in record(from_folder)


def in_half_precision(pipe):
    pipe.to(torch.bfloat16)


@pytest.mark.parametrize("place", OFFLOADS)
@pytest.mark.parametrize(("family", "mode"), [("sd", "text"), ("sd", "noised"), ("flux", "generate")])
def test_an_offloaded_pipeline_stays_offloaded(own, config, family, mode, place, tmp_path):
    plain = config(family, mode, store=str(tmp_path / "plain"))
    expected = rows(plain, own(family))
    pipe = own(family)
    place(pipe)
    before = state(pipe)
    np.testing.assert_array_equal(rows(config(family, mode), pipe), expected)
    after = state(pipe)
    assert after["weights"] == before["weights"]
    if place is not by_model:  # its hooks are made anew after each call, by diffusers
        assert after["hooks"] == before["hooks"]
    assert record(config(family, mode))["fingerprint"] == record(plain)["fingerprint"]


def test_the_record_names_the_dtype_of_the_weights(own, config):
    pipe = own("sd")
    pipe.to(torch.bfloat16)
    rows(config("sd", "generate"), pipe)
    assert record(config("sd", "generate"))["dtype"] == "bfloat16"


def test_a_store_is_not_continued_with_other_weights(own, config, monkeypatch, tmp_path):
    pipe = own("sd")
    rows(config("sd", "text"), pipe)
    (tmp_path / "given" / "manifest.json").unlink()
    rows(config("sd", "text"), pipe)  # the same weights
    (tmp_path / "given" / "manifest.json").unlink()
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(InputError, match=r"model\.fingerprint"):
        run.extract(config("sd", "text"), pipe=pipe)


def test_adapters_are_part_of_the_fingerprint(own, config, tmp_path):
    """LoRA as loaded, at another scale, disabled, fused, and unloaded: six different models, and rows that follow."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    pipe = own("sd")
    lora = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights="gaussian")
    made = {}

    def make(name: str) -> None:
        made_config = config("sd", "generate", store=str(tmp_path / name))
        made[name] = (rows(made_config, pipe), record(made_config)["fingerprint"])

    make("plain")
    pipe.unet.add_adapter(lora, "first")
    torch.manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    make("loaded")
    pipe.set_adapters(["first"], [0.5])
    make("scaled")
    pipe.unet.disable_adapters()
    make("disabled")
    pipe.unet.enable_adapters()
    pipe.set_adapters(["first"], [1.0])
    pipe.unet.fuse_lora()
    make("fused")
    assert len({fingerprint for _, fingerprint in made.values()}) == len(made)
    np.testing.assert_array_equal(made["disabled"][0], made["plain"][0])
    np.testing.assert_allclose(made["fused"][0], made["loaded"][0], atol=1e-4)
    assert np.abs(made["scaled"][0] - made["loaded"][0]).max() > 1e-3
    assert np.abs(made["plain"][0] - made["loaded"][0]).max() > 1e-3


def test_textual_inversions_of_several_vectors_are_tokenized_as_in_the_pipeline(own, config, tmp_path):
    pipe = own("sd")
    width = pipe.text_encoder.config.hidden_size
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion({"<gem>": torch.randn(3, width)}, token="<gem>")
    prompts = tmp_path / "gem.csv"
    prompts.write_text("prompt\na <gem>\n")
    config = config("sd", "text", prompts=str(prompts))
    run.extract(config, pipe=pipe)
    tokens = open_store(config.extract.store).samples[0]["clip.tokens"]
    assert [token for token in tokens if token.startswith("<gem>")] == ["<gem>", "<gem>_1", "<gem>_2"]


def test_a_sibling_is_recorded_as_the_text_to_image_pipeline(own, config, tmp_path):
    pipe = own("sd")
    expected = rows(config("sd", "generate", store=str(tmp_path / "plain")), pipe)
    sibling = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    before = state(sibling)
    np.testing.assert_array_equal(rows(config("sd", "generate"), sibling), expected)
    assert state(sibling) == before
    assert record(config("sd", "generate"))["pipeline"] == "StableDiffusionImg2ImgPipeline"


def test_flagged_images_are_named_and_left_out(own, config, tmp_path, capsys):
    plain = own("sd")
    fields = {"save_images": True, "height": 32, "width": 32, "shard_samples": 3, "batch_size": 3, "seed": 7}
    expected = rows(config("sd", "generate", store=str(tmp_path / "plain"), **fields), plain)
    images = plain(
        ["cat", "red apple", "glossy cat"],
        height=32,
        width=32,
        num_inference_steps=2,
        output_type="np",
        generator=[torch.Generator().manual_seed(7 + i) for i in range(3)],
    ).images
    scores = similarities(with_safety_checker(plain).safety_checker, images)
    highest = int(np.argmax(scores))
    checked = with_safety_checker(plain, threshold=float(np.mean(sorted(scores)[-2:])))
    capsys.readouterr()
    kept = rows(config("sd", "generate", **fields), checked)
    prompt = ("cat", "red apple", "glossy cat")[highest]
    out = capsys.readouterr().out
    assert f"the safety checker flagged 1 of 3 images, which are left out: {prompt!r} with seed {7 + highest}" in out
    assert "images skipped: 1" in out
    assert checked.safety_checker is not None
    parts = np.split(expected, 3)
    np.testing.assert_array_equal(kept, np.concatenate([parts[i] for i in range(3) if i != highest]))
    manifest = json.loads((tmp_path / "given" / "manifest.json").read_text())
    assert manifest["sites"]["unet.mid_block"]["skipped"] == [highest]


def test_a_steered_pipeline_is_refused(own, config, tmp_path):
    """The store's fingerprint of the weights would not show the steering."""
    pipe = own("sd")
    W_dec_FD = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    metadata = {"site": "clip.layer.1", "model_id": "", "family": "sd"}
    steerer = Steerer(Sae(W_dec_FD.T, torch.zeros(8), W_dec_FD, torch.zeros(16), 2, metadata))
    with (
        steerer.attach(pipe, {3: 1.0}),
        pytest.raises(InputError, match="pipe is steered; extract from it outside of the steering block"),
    ):
        run.extract(config("sd", "text"), pipe=pipe)
    assert not (tmp_path / "given").exists()
    assert len(rows(config("sd", "text"), pipe))


class Renamed(diffusers.StableDiffusionPipeline):
    """A pipeline of the user's own class."""


def test_a_subclass_is_recorded_by_its_name(own, config):
    pipe = Renamed(**own("sd").components, requires_safety_checker=False)
    rows(config("sd", "generate"), pipe)
    assert record(config("sd", "generate"))["pipeline"] == "Renamed"


@pytest.mark.parametrize(("field", "value"), [("offload", "model"), ("compile", True)])
def test_placement_of_a_given_pipeline_is_refused(own, config, field, value):
    made = config("sd", "text")
    made = Config(model=ModelConfig(**{field: value}), extract=made.extract)
    with pytest.raises(InputError, match=f"config.model.{field} is {value!r}; a given pipeline stays as it is"):
        run.extract(made, pipe=own("sd"))


def test_other_objects_and_pipelines_are_refused(own, config, sd):
    with pytest.raises(InputError, match="pipe is a CLIPTextModel; it must be a diffusers pipeline"):
        run.extract(config("sd", "text"), pipe=sd.text_encoder)
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    pipe = diffusers.DDPMPipeline(diffusers.UNet2DModel(sample_size=8, **blocks), sd.scheduler)
    with pytest.raises(InputError, match="pipe is a DDPMPipeline; supported: StableDiffusionPipeline"):
        run.extract(config("sd", "text"), pipe=pipe)
    flux = own("flux")
    flux.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(InputError, match=r"step cache.*pipe\.transformer\.disable_cache\(\)"):
        run.extract(config("flux", "generate"), pipe=flux)
    wider = {**flux.transformer.config, "in_channels": 32}
    parts = {name: part for name, part in own("flux").components.items() if part is not None}
    parts["transformer"] = diffusers.FluxTransformer2DModel.from_config(wider)
    control = diffusers.FluxControlPipeline(**parts)
    with pytest.raises(InputError, match="FluxControlPipeline; its transformer takes 32 channels"):
        run.extract(config("flux", "generate"), pipe=control)
