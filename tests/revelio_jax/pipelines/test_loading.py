"""Loading: sibling pipelines, variants of weights, single files, safety checkers, and tokenizers without padding."""

import csv
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
import transformers

from extract import listing, run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.source import find, find_family
from revelio_jax.store import open_store
from tests.helpers.pipelines import with_safety_checker

# Class in model_index.json, family, and changes of a component's config: their denoisers run as text-to-image.
TWINS = [
    ("StableDiffusionImg2ImgPipeline", "sd", {}),
    ("StableDiffusionInpaintPipeline", "sd", {}),
    ("StableDiffusionPAGPipeline", "sd", {}),
    ("StableDiffusionXLImg2ImgPipeline", "sdxl", {}),
    ("StableDiffusionXLInpaintPipeline", "sdxl", {}),
    ("FluxImg2ImgPipeline", "flux", {}),
    ("FluxKontextPipeline", "flux", {}),
    ("FluxInpaintPipeline", "flux", {}),
    ("LatentConsistencyModelPipeline", "sd", {"unet": {"time_cond_proj_dim": 8}}),
    (["pipeline_longer_prompts", "LongPrompts"], "sd", {}),
]
# The same, and what the denoiser needs besides a prompt.
OTHERS = [
    ("StableDiffusionInpaintPipeline", "sd", {"unet": {"in_channels": 9}}, {}, "takes 9 channels"),
    ("StableDiffusionInstructPix2PixPipeline", "sd", {"unet": {"in_channels": 8}}, {}, "takes 8 channels"),
    ("FluxFillPipeline", "flux", {"transformer": {"in_channels": 96}}, {}, "takes 96 channels"),
    ("StableDiffusionControlNetPipeline", "sd", {}, {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet"),
    ("AnimateDiffPipeline", "sd", {}, {"motion_adapter": ["diffusers", "MotionAdapter"]}, "motion_adapter"),
]
DENOISER_SITE = {"sd": "unet.mid_block", "sdxl": "unet.mid_block", "flux": "flux.double.1.image"}


@pytest.fixture
def sibling(folder, tmp_path):
    """Return a function that copies the folder of a family and makes it a sibling."""

    def make(cls, family: str, configs: dict, index: dict | None = None) -> str:
        path = shutil.copytree(folder(family), tmp_path / "sibling")
        contents = json.loads((path / "model_index.json").read_text()) | {"_class_name": cls} | (index or {})
        (path / "model_index.json").write_text(json.dumps(contents))
        for component, changes in configs.items():
            model = getattr(diffusers, contents[component][1])
            torch.manual_seed(1)
            model.from_config(model.load_config(path / component) | changes).save_pretrained(path / component)
        return str(path)

    return make


@pytest.fixture
def extraction(tmp_path):
    """Return a function that returns a config of an extraction from two prompts, or noised images."""

    def make(model: str, family: str, **fields) -> Config:
        prompts = tmp_path / "two.csv"
        with prompts.open("w", newline="") as file:
            csv.writer(file).writerows([["prompt"], ["cat"], ["red apple"]])
        base = {"prompts": str(prompts), "steps": 2, "height": 8, "width": 8, "store": str(tmp_path / "store")}
        return Config(
            model=ModelConfig(id=model, family=family, device="cpu"),
            extract=ExtractConfig(**base | fields),
        )

    return make


def rows(config: Config) -> np.ndarray:
    run.extract(config)
    site = open_store(config.extract.store).site()
    return site.read(0, site.rows)


@pytest.mark.parametrize(("cls", "family", "configs"), TWINS)
def test_a_sibling_runs_as_the_text_to_image_pipeline(cls, family, configs, sibling, extraction, folder, capsys):
    path = sibling(cls, family, configs)
    site = DENOISER_SITE[family]
    generated = rows(extraction(path, family, mode="generate", sites=(site,)))
    name = cls if isinstance(cls, str) else cls[1]
    assert f"{path} is a {name}; it runs as a" in capsys.readouterr().out
    if not configs:  # the same weights
        store = str(path) + "_twin"
        twin = rows(extraction(str(folder(family)), family, mode="generate", sites=(site,), store=store))
        np.testing.assert_array_equal(generated, twin)
    assert find_family(path, None) == family


@pytest.mark.parametrize(("cls", "family", "configs", "index", "reason"), OTHERS)
def test_other_siblings_give_text_and_refuse_their_denoiser(
    cls, family, configs, index, reason, sibling, extraction, folder, image_folder, tmp_path
):
    path = sibling(cls, family, configs, index)
    site = "clip.layer.1"
    text = rows(extraction(path, family, sites=(site,)))
    plain = rows(extraction(str(folder(family)), family, sites=(site,), store=str(tmp_path / "plain")))
    np.testing.assert_array_equal(text, plain)
    for mode, more in (("generate", {}), ("noised", {"images": str(image_folder), "timesteps": (5,)})):
        store = str(tmp_path / mode)
        config = extraction(path, family, mode=mode, sites=(DENOISER_SITE[family],), store=store, **more)
        with pytest.raises(InputError, match=f"{cls}; .*{reason}"):
            run.extract(config)
        assert not (tmp_path / mode).exists()
    with pytest.raises(InputError, match=reason):
        load_pipeline(ModelConfig(id=path, family=family, device="cpu"))
    table = listing.table(extraction(path, family))
    assert "clip.layer.1" in table
    assert "the denoiser is left out: it" in table
    assert "unet." not in table
    assert "flux." not in table


def test_noised_refuses_a_guidance_embedding(sibling, extraction, image_folder):
    path = sibling("LatentConsistencyModelPipeline", "sd", {"unet": {"time_cond_proj_dim": 8}})
    config = extraction(path, "sd", mode="noised", sites=("unet.mid_block",), images=str(image_folder), timesteps=(5,))
    with pytest.raises(InputError, match=r"guidance scale as an embedding.*generate, text"):
        run.extract(config)


@pytest.mark.parametrize("cls", ["StableDiffusion3Pipeline", "PixArtSigmaPipeline", "KandinskyPipeline"])
def test_an_unknown_pipeline_is_refused_by_its_class(cls, sibling):
    three = {
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
    }
    path = sibling(cls, "sd", {}, three)
    with pytest.raises(InputError, match=f"a {cls}; supported: StableDiffusionPipeline"):
        find(path, None, "sd")


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_weights_of_one_variant_are_used(family, request, tmp_path, folder, capsys):
    request.getfixturevalue(family).save_pretrained(tmp_path / "model", variant="fp16")
    assert not list((tmp_path / "model").rglob("*model.safetensors"))
    loaded = load_pipeline(ModelConfig(id=str(tmp_path / "model"), family=family, device="cpu"))
    assert "the vae has weights of the variant fp16 only; they are used as float32" in capsys.readouterr().out
    plain = load_pipeline(ModelConfig(id=str(folder(family)), family=family, device="cpu"))
    for name, part in plain.components.items():
        if isinstance(part, torch.nn.Module):
            for a, b in zip(part.parameters(), getattr(loaded, name).parameters(), strict=True):
                assert torch.equal(a, b)


def test_sharded_weights_of_a_variant_are_used(sd, tmp_path):
    sd.save_pretrained(tmp_path / "model", variant="fp16")
    shutil.rmtree(tmp_path / "model" / "unet")
    sd.unet.save_pretrained(tmp_path / "model" / "unet", variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "model" / "unet").glob("*.safetensors"))) > 1
    loaded = load_pipeline(ModelConfig(id=str(tmp_path / "model"), family="sd", device="cpu"))
    assert torch.equal(loaded.unet.conv_in.weight, sd.unet.conv_in.weight)


def test_two_variants_without_a_default_are_refused(sd, tmp_path):
    for variant in ("fp16", "bf16"):
        sd.save_pretrained(tmp_path / "model", variant=variant)
    with pytest.raises(InputError, match="have the variants bf16, fp16; keep the files of one of them"):
        load_pipeline(ModelConfig(id=str(tmp_path / "model"), family="sd", device="cpu"))


def test_a_single_file_gets_the_two_lines_that_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anything.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"from_single_file\('anything.safetensors'\); pipe.save_pretrained"):
        load_pipeline(ModelConfig(id="anything.safetensors", family="sd", device="cpu"))
    with pytest.raises(InputError, match=r"extract\(config, pipe=pipe\)"):
        load_pipeline(ModelConfig(id="flux-Q4.gguf", family="flux", device="cpu"))


def test_the_safety_checker_is_not_loaded_and_this_is_printed(sd, tmp_path, capsys):
    with_safety_checker(sd).save_pretrained(tmp_path / "model")
    loaded = load_pipeline(ModelConfig(id=str(tmp_path / "model"), family="sd", device="cpu"))
    assert loaded.safety_checker is None
    assert f"the safety checker of {tmp_path / 'model'} is not loaded" in capsys.readouterr().out


def test_a_decoder_without_a_padding_token_is_padded_under_its_mask(tmp_path, extraction):
    """Every prompt has the same activations in a batch as alone."""
    letters = {letter: i for i, letter in enumerate(["<|endoftext|>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = transformers.GPT2Tokenizer(vocab=letters, merges=[])
    tokenizer.pad_token = None
    config = transformers.GPT2Config(vocab_size=28, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = transformers.GPT2Model(config)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "gpt2")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2").pad_token is None
    values = rows(extraction(str(tmp_path / "gpt2"), "text", sites=("text.layer.1",)))
    index = open_store(str(tmp_path / "store")).site()
    sample = index.read_index("sample", 0, len(values))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "gpt2")
    for number, prompt in enumerate(("cat", "red apple")):
        ids = loaded(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            alone = model.eval()(ids, output_hidden_states=True)
        recorded = torch.from_numpy(values[sample == number])
        assert len(recorded) == ids.shape[1]
        # The last hidden state is after the final norm, which a hook point is not.
        torch.testing.assert_close(model.ln_f(recorded), alone.last_hidden_state[0])
