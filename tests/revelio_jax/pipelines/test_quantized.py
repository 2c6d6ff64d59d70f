"""Quantized components of bitsandbytes, torchao and GGUF: loaded, placed, fingerprinted, extracted from and steered."""

import importlib
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch

from extract import run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.store import open_store
from tests.helpers import MINIATURES

PACKAGES = {"4 bits": "bitsandbytes", "8 bits": "bitsandbytes", "torchao": "torchao"}
# Kind, family, component, hook point in it. On a CPU, diffusers refuses to quantize with bitsandbytes.
CASES = [
    ("4 bits", "sd", "text_encoder", "clip.layer.1"),
    ("8 bits", "sd", "text_encoder", "clip.layer.1"),
    ("4 bits", "flux", "text_encoder_2", "t5.block.1"),
    ("torchao", "sd", "text_encoder", "clip.layer.1"),
    ("torchao", "sd", "unet", "unet.mid_block"),
    ("torchao", "flux", "transformer", "flux.double.1.image"),
]


def settings(library, kind: str):
    """Return the quantization config of transformers or diffusers."""
    if kind == "4 bits":
        return library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    if kind == "8 bits":
        return library.BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return library.TorchAoConfig(Int8WeightOnlyConfig())


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """Return a function that saves a miniature with one quantized component, once; return its folder."""
    folders = {}

    def make(kind: str, family: str, component: str) -> str:
        pytest.importorskip(PACKAGES[kind], reason=f"{PACKAGES[kind]} is not installed")
        if (kind, component) not in folders:
            folder = shutil.copytree(MINIATURES / family, tmp_path_factory.mktemp("quantized") / family)
            library, cls = json.loads((folder / "model_index.json").read_text())[component]
            library = importlib.import_module(library)
            model = getattr(library, cls).from_pretrained(
                folder, subfolder=component, quantization_config=settings(library, kind), dtype=torch.float32
            )
            shutil.rmtree(folder / component)
            model.save_pretrained(folder / component)
            folders[kind, component] = str(folder)
        return folders[kind, component]

    return make


@pytest.fixture
def extract(tmp_path):
    """Return a function that extracts from a pipeline, and returns its rows and the record of the model."""

    def make(name: str, family: str, site: str, pipe=None, **model):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("glossy 3d emoji of red apple\nflat emoji of cat\n")
        config = Config(
            model=ModelConfig(family=family, **{"device": "cpu"} | model),
            extract=ExtractConfig(
                mode="text" if site.startswith(("clip", "t5")) else "generate",
                prompts=str(prompts),
                sites=(site,),
                steps=2,
                height=32,
                width=32,
                store=str(tmp_path / name),
            ),
        )
        run.extract(config, pipe=pipe)
        store = open_store(config.extract.store)
        return store.site().read(0, store.site().rows), store.manifest["model"]

    return make


@pytest.mark.parametrize(("kind", "family", "component", "site"), CASES)
def test_quantized_components_are_extracted_from(kind, family, component, site, quantized, extract):
    folder = quantized(kind, family, component)
    plain, record = extract("plain", family, site, id=str(MINIATURES / family))
    rows, quantized_record = extract("quantized", family, site, id=folder)
    assert quantized_record["fingerprint"] != record["fingerprint"]
    difference = np.linalg.norm(rows - plain) / np.linalg.norm(plain)
    assert 0 < difference < 0.5
    offloaded, same = extract("offloaded", family, site, id=folder, offload="model")
    np.testing.assert_array_equal(offloaded, rows)
    assert same["fingerprint"] == quantized_record["fingerprint"]
    pipe = load_pipeline(ModelConfig(id=folder, family=family, device="cpu"))
    given, record = extract("given", family, site, pipe=pipe)
    np.testing.assert_allclose(given, rows, atol=1e-5)
    assert getattr(pipe, component).is_quantized


@pytest.mark.parametrize(("kind", "family", "component", "site"), CASES)
def test_quantized_components_are_steered(kind, family, component, site, quantized, make_steerer):
    for offload in ("none", "model"):
        model = ModelConfig(id=quantized(kind, family, component), family=family, device="cpu", offload=offload)
        pipe = load_pipeline(model)

        def sample(pipe=pipe):
            generator = torch.Generator().manual_seed(0)
            size = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
            return pipe("a glossy 3d emoji of red apple", generator=generator, **size).images

        plain = sample()
        steerer = make_steerer(pipe, site)
        with steerer.attach(pipe, {3: 0.0}):
            np.testing.assert_array_equal(sample(), plain)
        latents = dict.fromkeys(range(steerer.sae.n_latents), 4.0)
        with steerer.attach(pipe, latents):
            assert np.abs(sample() - plain).max() > 1e-3
        np.testing.assert_array_equal(sample(), plain)


@pytest.mark.parametrize(("kind", "family", "component", "site"), CASES)
def test_the_fingerprint_covers_scales(kind, family, component, site, quantized, extract):
    """Two components whose integers agree, and whose scales differ. Running a component changes nothing."""
    pipe, other = (
        load_pipeline(ModelConfig(id=quantized(kind, family, component), family=family, device="cpu")) for _ in range(2)
    )
    first = extract("first", family, site, pipe=pipe)[1]["fingerprint"]
    if kind != "4 bits":
        assert extract("second", family, site, pipe=pipe)[1]["fingerprint"] == first
    elif is_packed(getattr(pipe, component)):
        with pytest.raises(InputError, match="pass a pipeline that has not run"):
            extract("second", family, site, pipe=pipe)
    weight = next(p for p in getattr(other, component).parameters() if hasattr(p, scale_of(kind)[0]))
    for attribute in scale_of(kind):
        weight = getattr(weight, attribute)
    with torch.no_grad():
        weight.mul_(2)
    assert extract("other", family, site, pipe=other)[1]["fingerprint"] != first


def is_packed(model) -> bool:
    """Return whether bitsandbytes has packed 4-bit weights for this CPU, as it does if the CPU has AVX512-BF16."""
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    return any(getattr(state, "packing_format_for_cpu", False) for state in states)


def scale_of(kind: str) -> tuple[str, ...]:
    """Return the attributes that lead from a weight to its scales."""
    return {"4 bits": ("quant_state", "absmax"), "8 bits": ("SCB",), "torchao": ("scale",)}[kind]


def test_sequential_offload_of_a_quantized_component_is_refused(quantized):
    folder = quantized("torchao", "sd", "unet")
    message = r"config\.model\.offload is 'sequential'; the unet is quantized.*allowed: none, model"
    with pytest.raises(InputError, match=message):
        load_pipeline(ModelConfig(id=folder, family="sd", device="cpu", offload="sequential"))


def test_quantized_weights_without_their_package_are_refused_in_one_line(tmp_path, monkeypatch):
    folder = shutil.copytree(MINIATURES / "sd", tmp_path / "sd")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}  # its package is not installed
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="its text_encoder cannot be loaded"):
        load_pipeline(ModelConfig(id=str(folder), family="sd", device="cpu"))


def test_a_transformer_from_a_gguf_file_is_extracted_from_and_steered(tmp_path, extract, make_steerer):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    folder = MINIATURES / "flux"
    plain = diffusers.FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    writer = gguf.GGUFWriter(tmp_path / "flux.gguf", "flux")
    quantized = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in plain.state_dict().items():
        values = tensor.numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    transformer = diffusers.FluxTransformer2DModel.from_single_file(
        str(tmp_path / "flux.gguf"),
        config=str(folder),
        subfolder="transformer",
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
    )
    pipe = diffusers.FluxPipeline.from_pretrained(folder, transformer=transformer, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert type(transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "GGUFParameter"
    site = "flux.double.1.image"
    expected, record = extract("plain", "flux", site, id=str(folder))
    rows, quantized_record = extract("gguf", "flux", site, pipe=pipe)
    difference = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
    assert 0 < difference < 0.1
    assert quantized_record["fingerprint"] != record["fingerprint"]

    def sample():
        size = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}
        return pipe("a red apple", generator=torch.Generator().manual_seed(0), **size).images

    unsteered, steerer = sample(), make_steerer(pipe, site)
    with steerer.attach(pipe, dict.fromkeys(range(steerer.sae.n_latents), 4.0)):
        assert np.abs(sample() - unsteered).max() > 1e-3
    np.testing.assert_array_equal(sample(), unsteered)
