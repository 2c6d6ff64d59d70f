"""Mode noised: every family against a forward pass written by hand; the end of passes; broken images."""

import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch

from extract import run
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import noising
from revelio_jax.store import open_store

DECODED = (0, 2, 3, 4)  # the fixture has five images


@pytest.fixture
def config(folder, image_folder, tmp_path):
    """A function that returns a config for a family, with fields of extract."""

    def make(family: str, **fields) -> Config:
        base = {
            "mode": "noised",
            "images": str(image_folder),
            "timesteps": (0, 500),
            "height": 8,
            "width": 8,
            "seed": 7,
            "batch_size": 5,
            "shard_samples": 5,
            "chunk_rows": 16,
            "store": str(tmp_path / "store"),
        }
        model = ModelConfig(id=str(folder(family)), family=family, device="cpu")
        return Config(model=model, extract=ExtractConfig(**base | fields))

    return make


def noise(shape, samples, timestep, seed=7):
    rows = []
    for sample in samples:
        state = np.random.SeedSequence([seed + sample, timestep]).generate_state(1, np.uint64)
        rows.append(torch.randn(shape, generator=torch.Generator().manual_seed(int(state[0]))))
    return torch.stack(rows)


def latents(pipe, image_folder):
    pixels = []
    for name in ("cat/a.png", "cat/c.png", "dog/a.jpg", "dog/b.png"):
        image = PIL.Image.open(image_folder / name).convert("RGB")
        image = PIL.ImageOps.fit(image, (8, 8), PIL.Image.Resampling.BICUBIC)
        pixels.append(np.asarray(image, np.float32) / 127.5 - 1)
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    config = pipe.vae.config
    return (pipe.vae.encode(pixels).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor


def sd(pipe, z, n, t):
    z = pipe.scheduler.add_noise(z, n, torch.tensor([t]))
    text = pipe.encode_prompt("", "cpu", 1, False)[0]
    pipe.unet(z, t, text.expand(4, -1, -1))


def sdxl(pipe, z, n, t):
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(1000)  # every timestep
    z = scheduler.add_noise(z, n, torch.tensor([float(t)]))
    z = scheduler.scale_model_input(z, torch.tensor(float(t)))
    text, _, pooled, _ = pipe.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
    sizes = torch.tensor([[8.0, 8, 0, 0, 8, 8]]).expand(4, -1)
    added = {"text_embeds": pooled.expand(4, -1), "time_ids": sizes}
    pipe.unet(z, t, text.expand(4, -1, -1), added_cond_kwargs=added)


def flux(pipe, z, n, t):
    z = (1 - t / 1000) * z + t / 1000 * n
    packed = torch.stack([z[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 2)  # [4, c, 4, 4, 4]
    packed = packed.permute(0, 3, 4, 1, 2).reshape(4, 16, 16)
    text, pooled, text_ids = pipe.encode_prompt("", None, device="cpu", max_sequence_length=10)  # its T5's
    ids = torch.tensor([[0.0, i, j] for i in range(4) for j in range(4)])
    pipe.transformer(
        hidden_states=packed,
        encoder_hidden_states=text.expand(4, -1, -1),
        pooled_projections=pooled.expand(4, -1),
        timestep=torch.full((4,), t / 1000),
        guidance=torch.full((4,), 3.5),
        img_ids=ids,
        txt_ids=text_ids,
    )


def dit(pipe, z, n, t):
    z = pipe.scheduler.add_noise(z, n, torch.tensor([t]))
    pipe.transformer(z, timestep=torch.tensor([t] * 4), class_labels=torch.tensor([1000] * 4))


def pixels(output):
    return output.permute(0, 2, 3, 1).flatten(1, 2)


# Forward pass, hook point, its module in the pipeline, and how its output becomes [sample, position, d].
FAMILIES = {
    "sd": (sd, "unet.up_blocks.0", lambda pipe: pipe.unet.up_blocks[0], pixels),
    "sdxl": (
        sdxl,
        "unet.mid_block.attentions.0",
        lambda pipe: pipe.unet.mid_block.attentions[0],
        lambda output: pixels(output[0]),
    ),
    "flux": (
        flux,
        "flux.single.0.image",
        lambda pipe: pipe.transformer.single_transformer_blocks[0],
        lambda output: output[1],
    ),
    "dit": (dit, "dit.block.1", lambda pipe: pipe.transformer.transformer_blocks[1], lambda output: output),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_rows_equal_a_separate_forward_pass(config, family, pool, request, image_folder, tmp_path, read_rows):
    forward, name, module, read = FAMILIES[family]
    run.extract(config(family, sites=(name,), pool=pool, guidance=3.5))
    pipe = request.getfixturevalue(family)
    expected = []
    with torch.no_grad():
        z = latents(pipe, image_folder)
        for timestep in (0, 500):
            outputs = []
            handle = module(pipe).register_forward_hook(lambda *args: outputs.append(args[-1]))  # noqa: B023
            forward(pipe, z, noise(z.shape[1:], DECODED, timestep), timestep)
            handle.remove()
            expected.append(read(outputs[0]))
    expected = torch.stack(expected, 1)  # [sample, timestep, position, d]
    positions = list(range(expected.shape[2]))
    if pool == "mean":
        expected, positions = expected.mean(2, keepdim=True), [-1]
    values, index = read_rows(tmp_path / "store")
    assert index.tolist() == [[s, t, p] for s in DECODED for t in (0, 500) for p in positions]
    torch.testing.assert_close(torch.from_numpy(values), expected.flatten(0, 2), rtol=1e-4, atol=1e-5)


def test_one_pass_records_all_hook_points_and_ends_after_the_last(config, called_modules, tmp_path):
    run.extract(config("sd", sites=("unet.up_blocks.0", "unet.mid_block"), timesteps=(25,)))
    unets = [module for module in called_modules if type(module).__name__ == "UNet2DConditionModel"]
    (unet,) = [unet for unet in unets if unet.device.type == "cpu"]  # the meta device only gave the shapes
    assert {id(unet.mid_block), id(unet.up_blocks[0])} <= {id(module) for module in called_modules}
    assert not {id(unet.up_blocks[1]), id(unet.conv_out)} & {id(module) for module in called_modules}
    assert open_store(str(tmp_path / "store")).site_names == ("unet.mid_block", "unet.up_blocks.0")


def test_a_broken_image_is_skipped_and_the_others_keep_their_ids(config, tmp_path, capsys, read_rows):
    run.extract(config("sd", sites=("unet.mid_block",), batch_size=2, shard_samples=2, pool="mean"))
    store = open_store(str(tmp_path / "store"))
    assert [(s["id"], s["image"], s["label"], s["seed"]) for s in store.samples] == [
        (0, "cat/a.png", "cat", 7),
        (1, "cat/b.png", "cat", 8),
        (2, "cat/c.png", "cat", 9),
        (3, "dog/a.jpg", "dog", 10),
        (4, "dog/b.png", "dog", 11),
    ]
    assert (store.site().dropped, store.site().rows) == (0, 8)
    assert store.manifest["sites"]["unet.mid_block"]["skipped"] == [1]
    assert "images skipped: 1" in capsys.readouterr().out
    whole = config("sd", sites=("unet.mid_block",), pool="mean", store=str(tmp_path / "whole"))
    run.extract(whole)
    for a, b in zip(read_rows(tmp_path / "store"), read_rows(tmp_path / "whole"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # other batches round differently


def test_a_resumed_store_counts_images_skipped_before(config, tmp_path):
    first = config("sd", sites=("unet.mid_block",), batch_size=2, shard_samples=2)
    run.extract(first)
    folder = tmp_path / "store"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "manifest.json").unlink()
    (folder / "shards/00002.json").unlink()
    run.extract(first)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert json.loads((folder / "manifest.json").read_text())["sites"]["unet.mid_block"]["skipped"] == [1]


def test_noise_depends_only_on_seed_and_timestep(sd):
    zeros = torch.zeros(3, 4, 8, 8)
    schedule = noising.noise_schedule(sd)
    together = noising.add_noise(schedule, zeros, [5, 6, 7], 300)
    alone = torch.cat([noising.add_noise(schedule, zeros[:1], [seed], 300) for seed in (5, 6, 7)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])
    other = noising.add_noise(schedule, zeros[:1], [5], 299)
    assert torch.corrcoef(torch.stack([other.flatten(), alone[0].flatten()]))[0, 1].abs() < 0.5


@pytest.mark.parametrize("name", ["unet.mid_block", "unet.down_blocks.0.attentions.0"])
def test_difference_is_output_minus_input(config, name, tmp_path, read_rows, sd, image_folder):
    run.extract(config("sd", sites=(name,), value="difference", timesteps=(500,)))
    module = sd.unet.mid_block if name == "unet.mid_block" else sd.unet.down_blocks[0].attentions[0]
    seen = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        z = latents(sd, image_folder)
        FAMILIES["sd"][0](sd, z, noise(z.shape[1:], DECODED, 500), 500)
    handle.remove()
    ((hidden_in, output),) = seen
    hidden_out = output[0] if isinstance(output, tuple) else output
    expected = pixels(hidden_out - hidden_in).flatten(0, 1)
    torch.testing.assert_close(torch.from_numpy(read_rows(tmp_path / "store")[0]), expected, rtol=1e-4, atol=1e-5)


BAD = [
    ({"timesteps": ()}, "config.extract.timesteps is empty"),
    ({"timesteps": (1000,)}, "config.extract.timesteps contains 1000; this model has timesteps 0 to 999"),
    ({"timesteps": (-1,)}, "contains -1; this model has timesteps 0 to 999"),
    ({"timesteps": (5, 5)}, "contains 5 twice"),
    (
        {"sites": ("clip.layer.0",)},
        "clip.layer.0; with config.extract.mode=noised it must be a hook point of a denoiser",
    ),
    ({"sites": ("unet.mid_blok",)}, "unknown hook point 'unet.mid_blok'"),
    ({"sites": ("unet.up_blocks.0",), "value": "difference"}, "input and output of unet.up_blocks.0"),
    ({"images": ""}, "config.extract.images is not set"),
    ({"images": "nowhere"}, "config.extract.images is 'nowhere'; it must be a folder"),
    ({"images": "empty"}, "the folder has no images"),
    ({"images": "broken"}, "none of its 1 images can be decoded"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_wrong_input_is_refused_before_anything_is_written(config, fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("broken").mkdir()
    pathlib.Path("broken/a.png").write_bytes(b"not an image")
    with pytest.raises(InputError) as error:
        run.extract(config("sd", **{"sites": ("unet.mid_block",)} | fields))
    assert message in str(error.value)
    assert not (tmp_path / "store").exists()


def test_a_denoiser_with_missing_weights_is_refused(config, sd, tmp_path):
    import safetensors.torch

    sd.save_pretrained(tmp_path / "m")
    weights = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors.pop("conv_in.weight")
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    incomplete = config("sd", sites=("unet.mid_block",))
    incomplete = dataclasses.replace(incomplete, model=dataclasses.replace(incomplete.model, id=str(tmp_path / "m")))
    with pytest.raises(InputError, match="conv_in"):
        run.extract(incomplete)
    assert not (tmp_path / "store").exists()
