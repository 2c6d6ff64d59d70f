"""Mode generate: every family against hooks on a plain call of its pipeline; schedules, seeds, saved files."""

import csv
import dataclasses
import io
import json
import shutil

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

from extract import run, status
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.store import layout, open_store

PROMPTS = ["cat", "", "red apple"]
CLASSES = ["goldfish", "biddy", "0"]  # 1, 2, 0
STEPS = 4


@pytest.fixture
def config(folder, tmp_path):
    """A function that returns a config for a family, with fields of extract."""

    def make(family: str, **fields) -> Config:
        prompts = tmp_path / f"{family}.csv"
        with prompts.open("w", newline="") as file:
            rows = CLASSES if family == "dit" else PROMPTS
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["prompt"], *([row] for row in rows)])
        base = {
            "mode": "generate",
            "prompts": str(prompts),
            "height": 8,
            "width": 8,
            "steps": STEPS,
            "seed": 7,
            "batch_size": 3,
            "shard_samples": 3,
            "chunk_rows": 16,
            "store": str(tmp_path / "store"),
        }
        model = ModelConfig(id=str(folder(family)), family=family, device="cpu")
        return Config(model=model, extract=ExtractConfig(**base | fields))

    return make


def call(pipe, **more):
    """Call the pipeline on the three prompts, with the seeds of the config."""
    generators = [torch.Generator().manual_seed(7 + i) for i in range(3)]
    arguments = {"prompt": PROMPTS, "height": 8, "width": 8}
    if isinstance(pipe, diffusers.DiTPipeline):
        arguments = {"class_labels": [1, 2, 0]}
    if isinstance(pipe, diffusers.FluxPipeline):  # its default is 512, whatever the length that T5 was trained with
        arguments["max_sequence_length"] = pipe.tokenizer_2.model_max_length
    return pipe(**arguments, num_inference_steps=STEPS, generator=generators, **more)


def pixels(output):
    return output.permute(0, 2, 3, 1).flatten(1, 2)


def first(outputs):
    return [output[:3] for output in outputs]


def second(outputs):
    return [output[3:] for output in outputs]


# Family, fields of the config, arguments of the pipeline, and a function that selects the conditional calls and rows.
CASES = [
    ("sd", {"guidance": 7.5}, {"guidance_scale": 7.5}, second),
    (
        "sd",
        {"guidance": 7.5, "negative_prompt": "cat"},
        {"guidance_scale": 7.5, "negative_prompt": ["cat"] * 3},
        second,
    ),
    ("sd", {"guidance": 1.0}, {"guidance_scale": 1.0}, list),
    ("sdxl", {"guidance": 5.0}, {"guidance_scale": 5.0}, second),
    ("sdxl", {"guidance": 0.0}, {"guidance_scale": 0.0}, list),
    ("flux", {"guidance": 3.5}, {"guidance_scale": 3.5}, list),
    (
        "flux",
        {"guidance": 3.5, "true_cfg": 2.0},
        {"guidance_scale": 3.5, "true_cfg_scale": 2.0, "negative_prompt": [""] * 3},
        lambda outputs: outputs[0::2],
    ),
    ("dit", {"guidance": 4.0}, {"guidance_scale": 4.0}, first),
    ("dit", {"guidance": 1.0}, {"guidance_scale": 1.0}, list),
]
SITES = {
    "sd": {"unet.mid_block": lambda p: p.unet.mid_block, "unet.up_blocks.1": lambda p: p.unet.up_blocks[1]},
    "sdxl": {"unet.up_blocks.0.attentions.1": lambda p: p.unet.up_blocks[0].attentions[1]},
    "flux": {
        "flux.double.1.text": lambda p: p.transformer.transformer_blocks[1],
        "flux.single.1.image": lambda p: p.transformer.single_transformer_blocks[1],
    },
    "dit": {"dit.block.2": lambda p: p.transformer.transformer_blocks[2]},
}


def tokens(name, output):
    """Return the activations [batch, position, d] in the output of a module."""
    if name.startswith("flux"):
        return output[0] if name.endswith("text") else output[1]
    output = output[0] if isinstance(output, tuple) else output
    return pixels(output) if name.startswith("unet") else output


@pytest.mark.parametrize(("family", "fields", "arguments", "conditional"), CASES)
def test_rows_equal_the_activations_of_a_plain_pipeline_call(
    config, family, fields, arguments, conditional, request, tmp_path, read_rows
):
    run.extract(config(family, sites=tuple(SITES[family]), **fields))
    pipe = request.getfixturevalue(family)
    outputs, handles = {name: [] for name in SITES[family]}, []
    for name, module in SITES[family].items():
        keep = outputs[name].append
        handles.append(
            module(pipe).register_forward_hook(
                lambda _, __, output, keep=keep, name=name: keep(tokens(name, output).clone())
            )
        )
    call(pipe, **arguments)
    for handle in handles:
        handle.remove()
    schedule = [round(float(t)) for t in pipe.scheduler.timesteps]
    assert len(schedule) == STEPS
    for name in SITES[family]:
        kept = torch.stack(conditional(outputs[name]), 1)  # [sample, timestep, position, d]
        assert kept.shape[:2] == (3, STEPS)
        values, index = read_rows(tmp_path / "store", name)
        assert index.tolist() == [[s, t, p] for s in range(3) for t in schedule for p in range(kept.shape[2])]
        torch.testing.assert_close(torch.from_numpy(values), kept.flatten(0, 2), rtol=1e-5, atol=1e-5)


def test_sampling_ends_after_the_last_selected_timestep(config, called_modules, tmp_path, read_rows):
    run.extract(config("sd", sites=("unet.mid_block",), timesteps=(501, 751)))
    passes = [m for m in called_modules if type(m).__name__ == "UNet2DConditionModel" and m.device.type == "cpu"]
    assert len(passes) == 2
    assert passes[0].conv_out in called_modules  # the first pass ran to its end
    assert "AutoencoderKL" not in {type(m).__name__ for m in called_modules}
    values, index = read_rows(tmp_path / "store")
    assert list(dict.fromkeys(index[:, 1])) == [751, 501]
    everything = config("sd", sites=("unet.mid_block",), store=str(tmp_path / "all"))
    run.extract(everything)
    all_values, all_index = read_rows(tmp_path / "all")
    is_selected = np.isin(all_index[:, 1], (501, 751))
    np.testing.assert_array_equal(values, all_values[is_selected])
    assert open_store(str(tmp_path / "all")).manifest["extract"]["timesteps"] == [751, 501, 251, 1]


@pytest.mark.parametrize("value", ["output", "difference"])
def test_difference_and_mean_pooling(config, value, tmp_path, read_rows, sd):
    fields = {"sites": ("unet.mid_block",), "value": value, "pool": "mean", "guidance": 3.0}
    run.extract(config("sd", **fields))
    means = []

    def keep(_, args, output):
        change = output - args[0] if value == "difference" else output
        means.append(change[3:].mean((2, 3)))

    handle = sd.unet.mid_block.register_forward_hook(keep)
    call(sd, guidance_scale=3.0)
    handle.remove()
    values, index = read_rows(tmp_path / "store")
    assert (index[:, 2] == -1).all()
    expected = torch.stack(means, 1).flatten(0, 1)
    torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "has_tokens"),
    [
        ({"sites": ("flux.double.1.text",)}, True),
        ({"sites": ("flux.double.1.text",), "pool": "mean"}, False),
        ({"sites": ("flux.double.1.image",)}, False),
    ],
)
def test_the_positions_of_a_text_stream_of_flux_are_tokens_of_t5(config, fields, has_tokens, tmp_path, flux):
    run.extract(config("flux", **fields))
    store = open_store(str(tmp_path / "store"))
    assert ("t5.tokens" in store.table().column_names) is has_tokens
    if not has_tokens:
        return
    for sample, prompt in zip(store.samples, PROMPTS, strict=True):
        ids = flux.tokenizer_2(prompt, truncation=True).input_ids
        assert sample["t5.tokens"] == flux.tokenizer_2.convert_ids_to_tokens(ids)
        assert len(sample["t5.kinds"]) == len(ids)
        assert sample["seed"] == 7 + sample["id"]
    # There are as many positions as the pipeline pads to, in the order of the tokens.
    position = store.site().read_index("position", 0, store.site().rows)
    assert position.max() + 1 == flux.tokenizer_2.model_max_length


@pytest.mark.parametrize("name", ["images/00000001.png", "latents/00000001.npy"])
def test_a_missing_or_broken_file_is_found_and_written_again(config, name, tmp_path, capsys):
    full_config = config("sd", sites=("unet.mid_block",), save_images=True, save_latents=True, shard_samples=2)
    run.extract(full_config)
    store = tmp_path / "store"
    whole = (store / name).read_bytes()
    assert status.report(str(store), 1, verify=True)
    for broken in (None, b"", whole[:-5]):
        (store / name).unlink(missing_ok=True)
        if broken is not None:
            (store / name).write_bytes(broken)
        capsys.readouterr()
        assert not status.report(str(store), 1, verify=True)
        assert capsys.readouterr().out.splitlines()[-2:] == [
            f"shard 0: {name} is missing or broken",
            f"to repair the store, delete manifest.json, shards/00000.json in {store} and extract again",
        ]
    (store / "manifest.json").unlink()
    (store / "shards/00000.json").unlink()
    run.extract(full_config)
    assert (store / name).read_bytes() == whole
    assert status.report(str(store), 1, verify=True)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_saved_images_and_latents_equal_the_pipelines_own(config, family, request):
    sites = {"sd": ("unet.mid_block",), "flux": ("flux.double.0.image",)}[family]
    first = {"sd": 751, "flux": 1000}[family]
    store = f"memory://{family}"
    run.extract(
        config(
            family,
            sites=sites,
            timesteps=(first,),
            store=store,
            save_images=True,
            save_latents=True,
            batch_size=2,
            guidance=3.5,
        )
    )
    pipe = request.getfixturevalue(family)
    images = call(pipe, guidance_scale=3.5).images
    latents = call(pipe, guidance_scale=3.5, output_type="latent").images
    if family == "flux":
        latents = pipe._unpack_latents(latents, 8, 8, 1)
    kvstore = layout.open_kvstore(store)
    for i in range(3):
        png = PIL.Image.open(io.BytesIO(kvstore.read(f"images/{i:08d}.png").result().value))
        assert np.abs(np.asarray(png, int) - np.asarray(images[i], int)).max() <= 1
        npy = np.load(io.BytesIO(kvstore.read(f"latents/{i:08d}.npy").result().value))
        np.testing.assert_allclose(npy, latents[i], rtol=1e-3, atol=1e-4)
    assert open_store(store).site().rows == 3 * 16


def test_the_first_pass_at_a_repeated_timestep_counts(config, sd, tmp_path, read_rows):
    """PNDM, the scheduler of Stable Diffusion 1, denoises twice at its second timestep."""
    copy = tmp_path / "pndm"
    sd.save_pretrained(copy)
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    scheduler.save_pretrained(copy / "scheduler")
    index = json.loads((copy / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (copy / "model_index.json").write_text(json.dumps(index))
    base = config("sd", sites=("unet.mid_block",), guidance=1.0, pool="mean")
    run.extract(dataclasses.replace(base, model=dataclasses.replace(base.model, id=str(copy))))
    _, index = read_rows(tmp_path / "store")
    assert index[:, 1].tolist() == [751, 501, 251, 1] * 3
    shutil.rmtree(copy)


def test_rounded_half_precision_timesteps_are_recognized(config, tmp_path, read_rows):
    """FLUX in bfloat16 gets rounded timesteps."""
    base = config("flux", sites=("flux.double.0.image",), steps=20, pool="mean", dtype="bfloat16")
    run.extract(dataclasses.replace(base, model=dataclasses.replace(base.model, dtype="bfloat16")))
    store = open_store(str(tmp_path / "store"))
    assert (store.site().dtype, store.site().rows) == ("bfloat16", 60)
    _, index = read_rows(tmp_path / "store")
    assert index[:20, 1].tolist() == store.manifest["extract"]["timesteps"]
    assert len(set(index[:20, 1])) == 20


def test_seeds_in_the_prompt_file_override_the_config(config, tmp_path):
    prompts = tmp_path / "seeded.csv"
    prompts.write_text("prompt,seed\ncat,11\ncat,11\ncat,12\n")
    run.extract(config("sd", sites=("unet.mid_block",), prompts=str(prompts), pool="mean"))
    store = open_store(str(tmp_path / "store"))
    assert [sample["seed"] for sample in store.samples] == [11, 11, 12]
    rows = store.site().read(0, 12).reshape(3, 4, -1)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
    assert np.abs(rows[0] - rows[2]).max() > 1e-2


BAD = [
    ("sd", {"timesteps": (500,)}, "contains 500; with config.extract.steps=4 the timesteps are 751, 501, 251, 1"),
    ("sd", {"sites": ("clip.layer.0",)}, "with config.extract.mode=generate it must be a hook point"),
    ("sd", {"sites": ("dit.block.0",)}, "unknown hook point 'dit.block.0'; this sd pipeline has"),
    ("sd", {"sites": ("unet.up_blocks.1",), "value": "difference"}, "allowed: output"),
    ("sd", {"prompts": "seeds.csv"}, "the seed of prompt 0 is 'x'; it must be a 64-bit whole number"),
    ("sd", {"prompts": "half.jsonl"}, "the seed of prompt 1 is 1.5; it must be a 64-bit whole number"),
    ("sd", {"prompts": "infinite.jsonl"}, "infinite.jsonl: line 1 is not JSON: Infinity is not a JSON number"),
    ("sd", {"prompts": "none.csv"}, "No such file"),
    ("sd", {"steps": 2000}, "config.extract.steps is 2000; it must be at most 1000, this model's timesteps"),
    ("flux", {"height": 9}, "config.extract.height is 9; it must be a multiple of 2 for this model"),
    ("dit", {"height": 16}, "config.extract.height is 16; it must be 8, the only size of this model"),
    ("dit", {"save_latents": True}, "config.extract.save_latents is True"),
    (
        "dit",
        {"prompts": "seeds.csv"},
        "unknown class 'cat'; this model takes a number below 1000, or a name such as biddy",
    ),
]
DEFAULT_SITE = {"sd": "unet.mid_block", "flux": "flux.double.0.image", "dit": "dit.block.0"}


@pytest.mark.parametrize(("family", "fields", "message"), BAD)
def test_wrong_input_is_refused_before_anything_is_written(config, family, fields, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.csv").write_text("prompt,seed\ncat,x\n" if family == "sd" else "prompt\ncat\n")
    (tmp_path / "half.jsonl").write_text('{"prompt": "cat", "seed": 1.0}\n{"prompt": "cat", "seed": 1.5}\n')
    (tmp_path / "infinite.jsonl").write_text('{"prompt": "cat", "seed": Infinity}\n')
    with pytest.raises(InputError) as error:
        run.extract(config(family, **{"sites": (DEFAULT_SITE[family],)} | fields))
    assert message in str(error.value)
    assert not (tmp_path / "store").exists()
