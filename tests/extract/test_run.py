"""python -m extract.run: what it writes, how it goes on, and what it refuses."""

import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from extract import run
from revelio_jax.errors import reported
from revelio_jax.store import open_store
from tests.helpers import ROOT

CONFIG = """
from revelio_jax.config import default

def get_config():
    c = default()
    c.model.id = {model!r}
    c.extract.prompts = {prompts!r}
    c.extract.sites = ("clip.layer.1", "clip.layer.0")
    c.extract.store = {store!r}
    c.extract.batch_size = 2
    c.extract.shard_samples = 3
    c.extract.chunk_rows = 8
    return c
"""


@pytest.fixture
def config(tmp_path, sd_folder, prompts):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(model=str(sd_folder), prompts=str(prompts), store=str(tmp_path / "store")))
    return path


def extract(config, **overrides):
    """The command in this process; fields by name, as extract__store."""
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    with reported():
        run.main(["--config", str(config), *flags])


def command(config, *flags):
    return [sys.executable, "-m", "extract.run", "--config", str(config), *flags]


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("positions", ["all", "no_padding", "content"])
def test_the_store_holds_the_encoders_own_activations(config, tmp_path, sd, positions, capsys):
    extract(config, extract__positions=positions)
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
            # The batch differs from that above, and with it the last bits.
            torch.testing.assert_close(
                torch.from_numpy(values), states[layer + 1][sample, position], rtol=1e-4, atol=1e-4
            )
            seen += zip(sample.tolist(), position.tolist(), strict=True)
        assert seen == [(s, first + p) for s in range(10) for p in range(counts[s])]
    assert len(out) == 2
    assert f"10 prompts, rows: clip.layer.0 {counts.sum():,} x 16" in out[0]
    assert str(tmp_path / "store") in out[1]
    assert store.manifest["extract"]["positions"] == positions
    assert store.manifest["model"]["family"] == "sd"
    assert "torch" in store.manifest["notes"]["versions"]


def test_only_empty_prompts_make_a_store_without_rows(config, tmp_path):
    (tmp_path / "empty.csv").write_text('prompt\n""\n""\n')
    extract(config, extract__prompts=tmp_path / "empty.csv", extract__positions="content")
    site = open_store(str(tmp_path / "store")).site()
    assert (site.rows, site.chunks) == (0, ())


def test_rows_that_are_not_finite_are_dropped_and_counted(config, tmp_path, sd_folder, capsys):
    """A model whose last position is beyond what float16 can hold."""
    broken = shutil.copytree(sd_folder, tmp_path / "broken")
    encoder = transformers.CLIPTextModel.from_pretrained(broken, subfolder="text_encoder")
    inner = getattr(encoder, "text_model", encoder)
    inner.embeddings.position_embedding.weight.data[-1] = 1e6
    encoder.save_pretrained(broken / "text_encoder")
    extract(config, model__id=broken, extract__dtype="float16")
    site = open_store(str(tmp_path / "store")).site("clip.layer.0")
    length = encoder.config.max_position_embeddings
    assert (site.rows, site.dropped) == (10 * (length - 1), 10)
    assert all(np.isfinite(site.read(*chunk)).all() for chunk in site.chunks)
    positions = [p for chunk in site.chunks for p in site.read_index("position", *chunk)]
    assert positions == [*range(length - 1)] * 10
    assert "20 non-finite rows dropped" in capsys.readouterr().out


def test_bfloat16_store(config, tmp_path):
    extract(config)
    extract(config, extract__dtype="bfloat16", extract__store=tmp_path / "half")
    full, half = (open_store(str(tmp_path / name)).site() for name in ("store", "half"))
    assert half.dtype == "bfloat16"
    values = torch.from_numpy(full.read(*full.chunks[0])).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(half.read(*half.chunks[0]), values)


def test_killed_and_run_again_it_equals_a_run_that_was_not(config, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(" ".join(["cat"] * (1 + n % 9)) for n in range(40)))
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    process = subprocess.Popen(command(config, *flags), cwd=ROOT, stderr=subprocess.DEVNULL)
    shards = tmp_path / "store/shards"
    while process.poll() is None and len(list(shards.glob("*.json"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(list(shards.glob("*.json")))
    assert 5 <= done < 40
    assert not (tmp_path / "store/manifest.json").exists()
    untouched = {p.name: p.stat().st_mtime_ns for p in shards.glob("*.json")}
    extract(config, **overrides)
    assert {name: (shards / name).stat().st_mtime_ns for name in untouched} == untouched
    extract(config, **overrides, extract__store=tmp_path / "whole")
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


def test_stopped_by_ctrl_c_it_says_so_in_a_line_and_goes_on(config, tmp_path):
    (tmp_path / "many.txt").write_text("cat\n" * 40)
    flags = [f"--config.extract.prompts={tmp_path / 'many.txt'}", "--config.extract.shard_samples=1"]
    process = subprocess.Popen(
        command(config, *flags),
        cwd=ROOT,
        env=os.environ | {"TQDM_DISABLE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and len(list((tmp_path / "store/shards").glob("*.json"))) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "stopped by Ctrl-C\n")
    assert not (tmp_path / "store/manifest.json").exists()
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    extract(config, **overrides)
    extract(config, **overrides, extract__store=tmp_path / "whole")
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


def work(config, overrides, rank):
    """What torchrun starts, four times."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "4", "TQDM_DISABLE": "1"}
    extract(config, **overrides)


def test_four_workers_of_which_some_are_killed_make_the_store_of_one(config, tmp_path):
    (tmp_path / "many.txt").write_text("\n".join(" ".join(["cat"] * (1 + n % 9)) for n in range(120)))
    overrides = {"extract__prompts": tmp_path / "many.txt", "extract__shard_samples": 1}
    processes = multiprocessing.get_context("forkserver")  # processes that need not import torch again
    processes.set_forkserver_preload(["extract.text_encoder", "transformers.models.clip.modeling_clip"])

    def start(rank):
        process = processes.Process(target=work, args=(config, overrides, rank))
        process.start()
        return process

    shards, moments = tmp_path / "store/shards", random.Random(0)
    running, kills = [start(rank) for rank in range(4)], 0
    for rank in (2, 0):
        seen = len(list(shards.glob("*.json")))
        while len(list(shards.glob("*.json"))) < seen + 2 and running[rank].is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        running[rank].kill()
        running[rank].join()
        kills += running[rank].exitcode == -signal.SIGKILL
        running[rank] = start(rank)
    assert kills
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    extract(config, **overrides, extract__store=tmp_path / "whole")
    assert tree(tmp_path / "store") == tree(tmp_path / "whole")


def test_a_finished_store_is_left_as_it_is(config, tmp_path, capsys):
    extract(config)
    before = tree(tmp_path / "store")
    capsys.readouterr()
    extract(config)
    assert "is complete" in capsys.readouterr().out
    assert tree(tmp_path / "store") == before


def test_another_config_or_model_is_refused_with_the_difference_named(config, tmp_path, sd_folder, capsys):
    extract(config)
    before = tree(tmp_path / "store")
    other = shutil.copytree(sd_folder, tmp_path / "other")
    encoder = transformers.CLIPTextModel.from_pretrained(other, subfolder="text_encoder")
    with torch.no_grad():
        next(encoder.parameters())[0] += 1
    (tmp_path / "p.txt").write_text("cat")
    # The same place, other weights: the folder that the store was made from is exchanged.
    encoder.save_pretrained(other / "text_encoder")
    for overrides, message in [
        ({"extract__positions": "content"}, "extract.positions 'all', this run has 'content'"),
        ({"extract__sites": "('clip.layer.1',)"}, "extract.sites"),
        ({"extract__prompts": tmp_path / "p.txt"}, "input.samples"),
        ({"extract__dtype": "float16"}, "dtype 'float32', this run has 'float16'"),
        ({"model__id": other}, "model.id"),
    ]:
        assert message in refused(capsys, config, **overrides)
        assert tree(tmp_path / "store") == before
    sd_text = tmp_path / "moved"
    shutil.copytree(sd_folder, sd_text)
    extract(config, model__id=sd_text, extract__store=tmp_path / "moved_store")
    shutil.rmtree(sd_text)
    shutil.copytree(other, sd_text)
    message = refused(capsys, config, model__id=sd_text, extract__store=tmp_path / "moved_store")
    assert "model.fingerprint" in message


def refused(capsys, config, **overrides):
    """Exit status 2 and the one line on stderr, which is returned."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        extract(config, **overrides)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


BAD = [
    ({"extract__sites": "('clip.layer.7',)"}, "config.extract.sites: unknown hook point 'clip.layer.7'"),
    (
        {"extract__sites": "('unet.mid_block',)"},
        "which config.extract.mode=text does not run; allowed there: generate, noised",
    ),
    ({"extract__sites": "('clip.layer.0','clip.layer.0')"}, "names clip.layer.0 twice"),
    ({"extract__sites": "()"}, "config.extract.sites is empty"),
    ({"extract__store": ""}, "config.extract.store is empty"),
    ({"extract__store": "ftp://x/y"}, "unknown scheme ftp"),
    ({"extract__store": "memory://x"}, "config.extract.store is 'memory://x', which would be lost"),
    ({"extract__store": "https://x/y"}, "config.extract.store is 'https://x/y', which can only be read"),
    ({"extract__chunk_rows": 10**9}, "config.extract.chunk_rows is 1000000000; it must be at most 1000000"),
    ({"extract__height": 80_000}, "config.extract.height is 80000; it must be at most 16384"),
    ({"extract__seed": 2**63}, "config.extract.seed is 9223372036854775808; it must be at most"),
    ({"extract__prompts": ""}, "config.extract.prompts is empty; it names a file: .txt, .csv"),
    ({"extract__prompts": "none.txt"}, "none.txt: No such file"),
    ({"extract__prompts": "empty.txt"}, "empty.txt: the file has no prompts"),
    ({"extract__prompts": "latin.txt"}, "latin.txt: not UTF-8"),
    ({"extract__prompts": "p.yaml"}, "unknown suffix '.yaml'"),
    ({"extract__prompt_column": "caption"}, "no column 'caption'"),
    ({"extract__dtype": "int8"}, "config.extract.dtype is 'int8'; allowed: float32"),
    ({"extract__batch_size": "0"}, "config.extract.batch_size is 0; it must be at least 1"),
    ({"extract__worker": "2", "extract__workers": "2"}, "config.extract.worker is 2; it must be below"),
    ({"extract__batchsize": "2"}, "unknown field config.extract.batchsize; did you mean batch_size?"),
    ({"model__id": ""}, "config.model.id is not set"),
    ({"model__id": "no/such/folder"}, "it must be an existing folder"),
    ({"model__id": "someone/no-such-model"}, "the hub does not provide model_index.json"),
    ({"model__id": "."}, "a folder without model_index.json"),
    ({"model__id": "broken_index"}, "its model_index.json is malformed"),
    ({"model__id": "other_class"}, "a KandinskyPipeline; known pipelines"),
    ({"model__id": "no_weights"}, "text_encoder cannot be loaded"),
    ({"model__id": "lacking"}, "its weights lack 1 tensors, such as"),
    ({"model__id": "no_config"}, "a folder without text_encoder/config.json"),
    ({"model__family": "flux"}, "set config.model.family=sd"),
    ({"model__device": "gpu7"}, "config.model.device is 'gpu7'"),
    ({"model__device": "meta"}, "config.model.device is 'meta'; it does not work on this machine"),
    pytest.param(
        {"model__device": "cuda"},
        "torch has no cuda",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(
    config, tmp_path, sd_folder, monkeypatch, capsys, overrides, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for name, index in [("broken_index", "{"), ("other_class", '{"_class_name": "KandinskyPipeline"}')]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(index)
    for name, gone in [("no_weights", "model.safetensors"), ("no_config", "config.json")]:
        shutil.copytree(sd_folder, tmp_path / name)
        (tmp_path / name / "text_encoder" / gone).unlink()
    weights = shutil.copytree(sd_folder, tmp_path / "lacking") / "text_encoder/model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors.pop(max(tensors))
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    before = tree(tmp_path)
    line = refused(capsys, config, **overrides)
    assert message in line
    assert line.count("config.model.id") <= 1  # an error is not reported inside another
    assert tree(tmp_path) == before
    assert not (tmp_path / "store").exists()


def test_a_folder_that_holds_something_else_is_left_alone(config, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("mine")
    assert "not empty and is not a store" in refused(capsys, config)
    assert tree(tmp_path / "store") == {"thesis.tex": b"mine"}


def test_the_real_command_says_one_line_too(config, tmp_path):
    """Other processes: what libraries write to stderr on import would show here."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    bad = command(config, "--config.extract.sites=('clip.layer.7',)")
    done = subprocess.run(bad, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "clip.layer.0-2" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "store").exists()


def save(folder, pipeline_class, encoders):
    """A pipeline's folder with nothing but its text encoders and tokenizers."""
    denoiser = "transformer" if pipeline_class == "FluxPipeline" else "unet"
    index = {"_class_name": pipeline_class, denoiser: ["diffusers", "never loaded"]}
    for suffix, (encoder, tokenizer) in encoders.items():
        for kind, part in (("text_encoder", encoder), ("tokenizer", tokenizer)):
            part.save_pretrained(folder / f"{kind}{suffix}")
            index[f"{kind}{suffix}"] = ["transformers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def test_sdxl_both_text_encoders_in_one_store(config, tmp_path, fitted, make_clip):
    second = make_clip(width=8, layers=4, projection=True)
    save(tmp_path / "m", "StableDiffusionXLPipeline", {"": (make_clip(), fitted), "_2": (second, fitted)})
    extract(
        config,
        model__id=tmp_path / "m",
        model__family="sdxl",
        extract__sites="('clip_g.layer.2', 'clip_l.layer.1')",
        extract__positions="no_padding",
    )
    store = open_store(str(tmp_path / "store"))
    one, two = store.site("clip_l.layer.1"), store.site("clip_g.layer.2")
    assert (one.d, two.d) == (16, 8)
    assert one.rows == two.rows == sum(range(2, 12))


def test_flux_each_text_encoder_has_its_own_tokens(config, tmp_path, fitted, make_clip, t5):
    save(tmp_path / "m", "FluxPipeline", {"": (make_clip(), fitted), "_2": (t5.model, t5.tokenizer)})
    flux = {"model__id": tmp_path / "m", "model__family": "flux", "extract__positions": "content"}
    extract(config, **flux, extract__sites="('t5.block.1', 'clip.layer.1')")
    store = open_store(str(tmp_path / "store"))
    # n cats are n tokens for CLIP and 4 n for T5, which is cut at 9 and its end marker.
    assert store.site("clip.layer.1").rows == sum(range(10))
    assert store.site("t5.block.1").rows == 4 + 8 + 7 * 9
    # For a site of T5 alone, CLIP's weights are not read.
    (tmp_path / "m/text_encoder/model.safetensors").unlink()
    extract(config, **flux, extract__sites="('t5.block.1',)", extract__store=tmp_path / "alone")
    alone = open_store(str(tmp_path / "alone")).site()
    for chunk in alone.chunks:
        np.testing.assert_array_equal(alone.read(*chunk), store.site("t5.block.1").read(*chunk))


def test_two_encoders_are_joined_token_by_token(config, tmp_path, fitted, make_clip):
    folder = tmp_path / "sdxl"
    encoders = {"text_encoder": make_clip(), "text_encoder_2": make_clip(24, projection=True)}
    index = {"_class_name": "StableDiffusionXLPipeline"}
    for component, encoder in encoders.items():
        encoder.save_pretrained(folder / component)
        name = component.replace("text_encoder", "tokenizer")
        fitted.save_pretrained(folder / name)
        index |= {
            component: ["transformers", type(encoder).__name__],
            name: ["transformers", "CLIPTokenizer"],
        }
    (folder / "model_index.json").write_text(json.dumps(index))
    joined = "clip_l.layer.1+clip_g.layer.0"
    names = (joined, "clip_g.layer.0")
    extract(config, model__id=folder, model__family="sdxl", extract__sites=names)
    store = open_store(str(tmp_path / "store"))
    both, alone = (store.site(name) for name in names)
    assert (both.d, alone.d) == (16 + 24, 24)
    assert both.rows == alone.rows == 10 * fitted.model_max_length
    rows = both.read(0, both.rows)
    np.testing.assert_array_equal(rows[:, 16:], alone.read(0, alone.rows))
    ids = fitted([sample["prompt"] for sample in store.samples], padding="max_length", return_tensors="pt")
    with torch.inference_mode():
        states = encoders["text_encoder"](ids["input_ids"], output_hidden_states=True).hidden_states
    np.testing.assert_allclose(rows[:, :16], states[2].flatten(0, 1), atol=1e-5)


def test_a_text_encoder_of_its_own(config, tmp_path, bert, capsys):
    folder = tmp_path / "bert"
    bert.model.save_pretrained(folder)
    bert.tokenizer.save_pretrained(folder)
    extract(config, model__id=folder, model__family="text", extract__sites="('text.layer.1',)")
    store = open_store(str(tmp_path / "store"))
    assert store.samples[2]["text.tokens"] == ["[CLS]", "cat", "cat", "[SEP]"]
    assert store.site("text.layer.1").rows == sum(n + 2 for n in range(10))
    capsys.readouterr()
    for overrides, message in [
        ({"extract__sites": "('clip.layer.1',)"}, "text.layer.0-2"),
        ({"model__family": "sd"}, "config.model.family=text"),
    ]:
        fields = {"model__id": folder, "model__family": "text", "extract__sites": "('text.layer.1',)"}
        assert message in refused(capsys, config, **(fields | overrides | {"extract__store": tmp_path / "b"}))
        assert not (tmp_path / "b").exists()
