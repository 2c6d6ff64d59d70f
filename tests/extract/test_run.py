"""revelio extract: refused inputs and stores."""

import os
import shutil
import subprocess

import pytest
import safetensors.torch
import torch
import transformers

from tests.helpers import ROOT
from tests.helpers.extraction import command, read_files, refusal, run_extract

BAD = [
    ({"extract__sites": "('clip.layer.7',)"}, "config.extract.sites: unknown hook point 'clip.layer.7'"),
    (
        {"extract__sites": "('unet.mid_block',)"},
        "config.extract.mode must then be generate or noised, not text",
    ),
    ({"extract__sites": "('clip.layer.0','clip.layer.0')"}, "config.extract.sites contains clip.layer.0 twice"),
    ({"extract__sites": "()"}, "config.extract.sites is empty"),
    ({"extract__store": ""}, "config.extract.store is not set"),
    ({"extract__store": "ftp://x/y"}, "unknown scheme ftp"),
    ({"extract__store": "memory://x"}, "config.extract.store is 'memory://x', which ends with the process"),
    ({"extract__store": "https://x/y"}, "config.extract.store is 'https://x/y', which is read-only"),
    ({"extract__chunk_rows": 10**9}, "config.extract.chunk_rows is 1000000000; it must be at most 1000000"),
    ({"extract__height": 80_000}, "config.extract.height is 80000; it must be at most 16384"),
    ({"extract__seed": 2**63}, "config.extract.seed is 9223372036854775808; it must be at most"),
    ({"extract__prompts": ""}, "config.extract.prompts is not set; it must be a file: .txt, .csv"),
    ({"extract__prompts": "none.txt"}, "none.txt: No such file"),
    ({"extract__prompts": "empty.txt"}, "empty.txt: the file has no prompts"),
    ({"extract__prompts": "latin.txt"}, "latin.txt: not UTF-8"),
    ({"extract__prompts": "p.yaml"}, "unknown suffix '.yaml'"),
    ({"extract__prompt_column": "caption"}, "column 'caption' (config.extract.prompt_column) is missing"),
    ({"extract__dtype": "int8"}, "config.extract.dtype is 'int8'; allowed: float32"),
    ({"extract__batch_size": "0"}, "config.extract.batch_size is 0; it must be at least 1"),
    ({"extract__worker": "2", "extract__workers": "2"}, "config.extract.worker is 2; it must be below"),
    ({"extract__batchsize": "2"}, "unknown field config.extract.batchsize; did you mean batch_size?"),
    ({"model__id": ""}, "config.model.id is not set"),
    ({"model__id": "no/such/folder"}, "it must be an existing folder"),
    ({"model__id": "someone/no-such-model"}, "the hub does not provide model_index.json"),
    ({"model__id": "."}, "a folder without model_index.json"),
    ({"model__id": "broken_index"}, "its model_index.json is malformed"),
    ({"model__id": "other_class"}, "a KandinskyPipeline; supported"),
    ({"model__id": "no_weights"}, "text_encoder cannot be loaded"),
    ({"model__id": "cut_weights"}, "text_encoder cannot be loaded: Error while deserializing header"),
    ({"model__id": "broken_tokenizer"}, "text_encoder cannot be loaded: "),
    ({"model__id": "lacking"}, "its weights lack 1 tensors, such as"),
    ({"model__id": "no_config"}, "a folder without text_encoder/config.json"),
    ({"model__family": "flux"}, "set config.model.family=sd"),
    ({"model__device": "gpu7"}, "config.model.device is 'gpu7'"),
    ({"model__device": "meta"}, "config.model.device is 'meta'; it does not work on this machine"),
    pytest.param(
        {"model__device": "cuda"},
        "cuda is not available on this machine",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_wrong_input_is_refused_in_one_line_and_writes_nothing(
    text_config, tmp_path, sd_folder, monkeypatch, capsys, overrides, message
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
    for name, file in [
        ("cut_weights", "text_encoder/model.safetensors"),
        ("broken_tokenizer", "tokenizer/tokenizer.json"),
    ]:
        shutil.copytree(sd_folder, tmp_path / name)
        (tmp_path / name / file).write_bytes((sd_folder / file).read_bytes()[:100])
    weights = shutil.copytree(sd_folder, tmp_path / "lacking") / "text_encoder/model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors.pop(max(tensors))
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    before = read_files(tmp_path)
    line = refusal(capsys, text_config, **overrides)
    assert message in line
    assert line.count("config.model.id") <= 1  # no error message contains another
    assert read_files(tmp_path) == before
    assert not (tmp_path / "store").exists()


def test_a_folder_with_other_files_is_refused_and_unchanged(text_config, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("mine")
    assert "not empty and is not a store" in refusal(capsys, text_config)
    assert read_files(tmp_path / "store") == {"thesis.tex": b"mine"}


@pytest.mark.slow
def test_the_command_as_a_process_prints_one_line(text_config, tmp_path):
    """Warnings that libraries write to stderr on import would show here."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    bad = command(text_config, extract__sites="clip.layer.7")
    process = subprocess.run(bad, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "clip.layer.0-2" in process.stderr
    assert process.stdout == ""
    assert not (tmp_path / "store").exists()


def test_a_finished_store_is_unchanged(text_config, tmp_path, capsys):
    run_extract(text_config)
    before = read_files(tmp_path / "store")
    capsys.readouterr()
    run_extract(text_config)
    assert "is already complete" in capsys.readouterr().out
    assert read_files(tmp_path / "store") == before


def test_an_unwritable_store_is_refused_before_the_prompts_are_read(text_config, small_disk, capsys):
    store, prompts = small_disk("size=1m,ro") / "stores" / "a", "none.txt"
    message = refusal(capsys, text_config, extract__store=store, extract__prompts=prompts)
    assert message == f"error: config.extract.store is '{store}', which cannot be written: Read-only file system\n"


def test_a_finished_store_may_be_read_only(text_config, tmp_path, small_disk, capsys):
    disk = small_disk("size=4m")
    run_extract(text_config, extract__store=disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    run_extract(text_config, extract__store=disk / "store")
    assert "is already complete" in capsys.readouterr().out


def test_a_store_of_another_config_or_model_is_refused_with_the_difference(text_config, tmp_path, sd_folder, capsys):
    run_extract(text_config)
    before = read_files(tmp_path / "store")
    other = shutil.copytree(sd_folder, tmp_path / "other")
    encoder = transformers.CLIPTextModel.from_pretrained(other, subfolder="text_encoder")
    with torch.no_grad():
        next(encoder.parameters())[0] += 1
    (tmp_path / "p.txt").write_text("cat")
    # Other weights in the folder that the store was made from.
    encoder.save_pretrained(other / "text_encoder")
    for overrides, message in [
        ({"extract__positions": "content"}, "extract.positions 'all', this run has 'content'"),
        ({"extract__sites": "('clip.layer.1',)"}, "extract.sites"),
        ({"extract__prompts": tmp_path / "p.txt"}, "input.samples"),
        ({"extract__dtype": "float16"}, "dtype 'float32', this run has 'float16'"),
        ({"model__id": other}, "model.id"),
    ]:
        assert message in refusal(capsys, text_config, **overrides)
        assert read_files(tmp_path / "store") == before
    moved = tmp_path / "moved"
    shutil.copytree(sd_folder, moved)
    run_extract(text_config, model__id=moved, extract__store=tmp_path / "moved_store")
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    message = refusal(capsys, text_config, model__id=moved, extract__store=tmp_path / "moved_store")
    assert "model.fingerprint" in message
