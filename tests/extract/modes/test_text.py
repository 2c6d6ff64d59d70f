"""Mode text: rows of every kind of text encoder."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from revelio_jax.store import open_store
from tests.helpers.extraction import refusal, run_extract


@pytest.mark.parametrize("positions", ["all", "no_padding", "content"])
def test_the_store_holds_the_hidden_states_of_the_encoder(text_config, tmp_path, sd, positions, capsys):
    run_extract(text_config, extract__positions=positions)
    out = capsys.readouterr().out.splitlines()
    store = open_store(str(tmp_path / "store"))
    prompts = [sample["prompt"] for sample in store.samples]
    assert prompts == ["", *(" ".join(["cat"] * n) for n in range(1, 10))]
    start, end = "<|startoftext|>", "<|endoftext|>"
    assert store.samples[3] == {
        "id": 3,
        "prompt": "cat cat cat",
        "style": "style 1",
        "clip.tokens": [start, "cat</w>", "cat</w>", "cat</w>", end],
        "clip.kinds": [0, 1, 1, 1, 2],
    }
    assert store.site_names == ("clip.layer.0", "clip.layer.1")

    ids = sd.tokenizer(prompts, padding="max_length", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = sd.text_encoder(ids, output_hidden_states=True).hidden_states
    words = np.arange(10)
    first, counts = {
        "all": (0, np.full(10, ids.shape[1])),
        "no_padding": (0, words + 2),
        "content": (1, words),
    }[positions]
    for layer in (0, 1):
        site = store.site(f"clip.layer.{layer}")
        assert (site.rows, site.dropped, site.d) == (counts.sum(), 0, 16)
        seen = []
        for chunk in site.chunks:
            values, sample, position = (
                site.read(*chunk),
                site.read_index("sample", *chunk),
                site.read_index("position", *chunk),
            )
            assert (site.read_index("timestep", *chunk) == -1).all()
            # The batches differ from the reference, which changes the last bits.
            torch.testing.assert_close(
                torch.from_numpy(values), states[layer + 1][sample, position], rtol=1e-4, atol=1e-4
            )
            seen += zip(sample.tolist(), position.tolist(), strict=True)
        assert seen == [(s, first + p) for s in range(10) for p in range(counts[s])]
    assert len(out) == 3
    assert out[0] == "worker 0 of 1: this process writes the whole store"
    assert f"10 prompts, rows: clip.layer.0 {counts.sum():,} x 16" in out[1]
    assert str(tmp_path / "store") in out[2]
    assert store.manifest["extract"]["positions"] == positions
    assert store.manifest["model"]["family"] == "sd"
    assert "torch" in store.manifest["notes"]["versions"]


def test_empty_prompts_alone_give_a_store_without_rows(text_config, tmp_path):
    (tmp_path / "empty.csv").write_text('prompt\n""\n""\n')
    run_extract(text_config, extract__prompts=tmp_path / "empty.csv", extract__positions="content")
    site = open_store(str(tmp_path / "store")).site()
    assert (site.rows, site.chunks) == (0, ())


def test_non_finite_rows_are_dropped_and_counted(text_config, tmp_path, sd_folder, capsys):
    """The last position of this model overflows float16."""
    broken = shutil.copytree(sd_folder, tmp_path / "broken")
    encoder = transformers.CLIPTextModel.from_pretrained(broken, subfolder="text_encoder")
    inner = getattr(encoder, "text_model", encoder)
    inner.embeddings.position_embedding.weight.data[-1] = 1e6
    encoder.save_pretrained(broken / "text_encoder")
    run_extract(text_config, model__id=broken, extract__dtype="float16")
    site = open_store(str(tmp_path / "store")).site("clip.layer.0")
    length = encoder.config.max_position_embeddings
    assert (site.rows, site.dropped) == (10 * (length - 1), 10)
    assert all(np.isfinite(site.read(*chunk)).all() for chunk in site.chunks)
    positions = [p for chunk in site.chunks for p in site.read_index("position", *chunk)]
    assert positions == [*range(length - 1)] * 10
    assert "20 non-finite rows dropped" in capsys.readouterr().out


def test_a_bfloat16_store_holds_the_rounded_rows(text_config, tmp_path):
    run_extract(text_config)
    run_extract(text_config, extract__dtype="bfloat16", extract__store=tmp_path / "half")
    full, half = (open_store(str(tmp_path / name)).site() for name in ("store", "half"))
    assert half.dtype == "bfloat16"
    values = torch.from_numpy(full.read(*full.chunks[0])).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(half.read(*half.chunks[0]), values)


def save(folder, pipeline_class, encoders):
    """Save a pipeline's text encoders and tokenizers, without the rest of the pipeline."""
    denoiser = "transformer" if pipeline_class == "FluxPipeline" else "unet"
    index = {"_class_name": pipeline_class, denoiser: ["diffusers", "never loaded"]}
    for suffix, (encoder, tokenizer) in encoders.items():
        for kind, part in (("text_encoder", encoder), ("tokenizer", tokenizer)):
            part.save_pretrained(folder / f"{kind}{suffix}")
            index[f"{kind}{suffix}"] = ["transformers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_both_text_encoders_of_sdxl_are_in_one_store(text_config, tmp_path, fitted, make_clip):
    second = make_clip(width=8, layers=4, projection=True)
    save(tmp_path / "m", "StableDiffusionXLPipeline", {"": (make_clip(), fitted), "_2": (second, fitted)})
    run_extract(
        text_config,
        model__id=tmp_path / "m",
        model__family="sdxl",
        extract__sites="('clip_g.layer.2', 'clip_l.layer.1')",
        extract__positions="no_padding",
    )
    store = open_store(str(tmp_path / "store"))
    one, two = store.site("clip_l.layer.1"), store.site("clip_g.layer.2")
    assert (one.d, two.d) == (16, 8)
    assert one.rows == two.rows == sum(range(2, 12))


def test_each_text_encoder_of_flux_has_its_own_tokens(text_config, tmp_path, fitted, make_clip, t5):
    save(tmp_path / "m", "FluxPipeline", {"": (make_clip(), fitted), "_2": (t5.model, t5.tokenizer)})
    flux = {"model__id": tmp_path / "m", "model__family": "flux", "extract__positions": "content"}
    run_extract(text_config, **flux, extract__sites="('t5.block.1', 'clip.layer.1')")
    store = open_store(str(tmp_path / "store"))
    # n cats are n tokens for CLIP and 4 n for T5, which truncates at 9 tokens and an end marker.
    assert store.site("clip.layer.1").rows == sum(range(10))
    assert store.site("t5.block.1").rows == 4 + 8 + 7 * 9
    # A hook point of T5 alone does not read CLIP's weights.
    (tmp_path / "m/text_encoder/model.safetensors").unlink()
    run_extract(text_config, **flux, extract__sites="('t5.block.1',)", extract__store=tmp_path / "alone")
    alone = open_store(str(tmp_path / "alone")).site()
    for chunk in alone.chunks:
        np.testing.assert_array_equal(alone.read(*chunk), store.site("t5.block.1").read(*chunk))


def test_joined_encoders_have_their_activations_side_by_side(text_config, tmp_path, fitted, make_clip):
    folder, first, second = tmp_path / "sdxl", make_clip(), make_clip(24, projection=True)
    save(folder, "StableDiffusionXLPipeline", {"": (first, fitted), "_2": (second, fitted)})
    joined = "clip_l.layer.1+clip_g.layer.0"
    names = (joined, "clip_g.layer.0")
    run_extract(text_config, model__id=folder, model__family="sdxl", extract__sites=names)
    store = open_store(str(tmp_path / "store"))
    both, alone = (store.site(name) for name in names)
    assert (both.d, alone.d) == (16 + 24, 24)
    assert both.rows == alone.rows == 10 * fitted.model_max_length
    rows = both.read(0, both.rows)
    np.testing.assert_array_equal(rows[:, 16:], alone.read(0, alone.rows))
    ids = fitted([sample["prompt"] for sample in store.samples], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        states = first(ids["input_ids"], output_hidden_states=True).hidden_states
    np.testing.assert_allclose(rows[:, :16], states[2].flatten(0, 1), atol=1e-5)


def test_a_text_encoder_without_a_pipeline(text_config, tmp_path, bert, capsys):
    folder = tmp_path / "bert"
    bert.model.save_pretrained(folder)
    bert.tokenizer.save_pretrained(folder)
    run_extract(text_config, model__id=folder, model__family="text", extract__sites="('text.layer.1',)")
    store = open_store(str(tmp_path / "store"))
    assert store.samples[2]["text.tokens"] == ["[CLS]", "cat", "cat", "[SEP]"]
    assert store.site("text.layer.1").rows == sum(n + 2 for n in range(10))
    capsys.readouterr()
    for overrides, message in [
        ({"extract__sites": "('clip.layer.1',)"}, "text.layer.0-2"),
        ({"model__family": "sd"}, "config.model.family=text"),
    ]:
        fields = {"model__id": folder, "model__family": "text", "extract__sites": "('text.layer.1',)"}
        assert message in refusal(capsys, text_config, **(fields | overrides | {"extract__store": tmp_path / "b"}))
        assert not (tmp_path / "b").exists()


def test_a_layer_that_no_image_depends_on_is_extracted_with_a_warning(text_config, tmp_path, fitted, make_clip, capsys):
    second = make_clip(width=8, projection=True)
    save(tmp_path / "m", "StableDiffusionXLPipeline", {"": (make_clip(), fitted), "_2": (second, fitted)})
    sites = "('clip_l.layer.2', 'clip_g.layer.2')"
    run_extract(text_config, model__id=tmp_path / "m", model__family="sdxl", extract__sites=sites)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: config.extract.sites contains clip_l.layer.2, but no output of the pipeline depends on "
        "clip_l.layer.2; an SAE of it can be interpreted, but cannot steer"
    ]
    assert open_store(str(tmp_path / "store")).site("clip_l.layer.2").rows
