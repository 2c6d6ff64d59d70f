"""The commands of steering on wrong input: one line, status 2, nothing written."""

import json

import pytest

from revelio_jax.benchmark import steer as steering
from revelio_jax.benchmark import table
from revelio_jax.errors import reported
from revelio_jax.steering import latents
from tests.helpers import ROOT


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path, sae_folder):
    """``refused(main, *flags)``: the one line that a command ends with."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"

    def command(main, *flags: str) -> str:
        config = ["--config=configs/mini_sd.py", f"--config.run={run}"]
        with pytest.raises(SystemExit) as stop, reported():
            main([*config, *flags])
        assert stop.value.code == 2
        assert not run.exists()
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return command


@pytest.mark.parametrize("strength", ["strong", "1,two", "nan", "1,,2", ""])
def test_a_strength_that_is_no_number(refused, strength):
    assert "must be finite numbers" in refused(steering.main, "--concept=flat", f"--strength={strength}")


def test_steering_without_a_concept_or_a_prompt(refused):
    assert "--concept is missing" in refused(steering.main)
    assert "--prompt is missing" in refused(steering.main, "--concept=wood")


def test_an_sae_folder_that_is_missing(refused):
    assert "cfg.json is missing" in refused(steering.main, "--concept=flat")


def test_an_sae_folder_for_another_model(refused, sae_folder):
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = "owner/another"
    (sae_folder / "cfg.json").write_text(json.dumps(config))
    said = refused(steering.main, "--concept=flat", f"--sae={sae_folder}")
    assert "extract/miniature/sd" in said
    assert "owner/another" in said


def test_a_judge_or_prompts_that_are_missing(refused):
    assert "judge.safetensors" in refused(steering.main, "--concept=flat", "--config.steer.judge=nowhere")
    assert "no/prompts.csv" in refused(steering.main, "--concept=flat", "--config.steer.prompts=no/prompts.csv")


@pytest.mark.parametrize("command", [latents, table])
def test_a_concept_that_the_labels_do_not_have(refused, command):
    assert "flat, glossy 3d, noto" in refused(command.main, "--concept=style=wooden")
    assert "style, category" in refused(command.main, "--concept=wooden")


def test_a_ratio_that_is_no_number(refused):
    assert "--ratio" in refused(latents.main, "--concept=style=flat", "--ratio=big")
