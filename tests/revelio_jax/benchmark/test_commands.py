"""Commands of steering end with one line and status 2 on wrong input, and write nothing."""

import json

import pytest

from revelio_jax.benchmark import command as benchmark
from revelio_jax.benchmark import steer
from revelio_jax.errors import report_errors
from revelio_jax.steering import latents
from tests.helpers import ROOT


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Return a function that runs a command and returns the line it prints before it exits with status 2."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"

    def command(main, *flags: str) -> str:
        config = ["--config=configs/mini_sd.py", f"--config.run={run}"]
        with pytest.raises(SystemExit) as stop, report_errors():
            main([*config, *flags])
        assert stop.value.code == 2
        assert not run.exists()
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return command


@pytest.mark.parametrize("strength", ["strong", "1,two", "nan", "1,,2", ""])
def test_a_strength_that_is_not_a_finite_number_is_refused(refused, strength):
    assert "it must be finite numbers" in refused(steer.main, "--concept=flat", f"--strength={strength}")


def test_a_missing_concept_or_prompt_is_refused(refused):
    assert "--concept is missing" in refused(steer.main)
    assert "--prompt is missing" in refused(steer.main, "--concept=wood")


@pytest.mark.parametrize("main", [steer.main, benchmark.main])
def test_an_unset_run_is_refused(refused, main):
    assert "config.run is not set" in refused(main, "--concept=style=flat", "--config.run=")


def test_a_missing_sae_folder_is_refused(refused):
    assert "cfg.json is missing" in refused(steer.main, "--concept=flat")


def test_an_sae_of_another_model_is_refused(refused, sae_folder):
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"]["model_id"] = "owner/another"
    (sae_folder / "cfg.json").write_text(json.dumps(config))
    line = refused(steer.main, "--concept=flat", f"--sae={sae_folder}")
    assert "extract/miniature/sd" in line
    assert "owner/another" in line


def test_a_missing_judge_or_prompt_file_is_refused(refused):
    assert "judge.safetensors" in refused(steer.main, "--concept=flat", "--config.steer.judge=nowhere")
    assert "no/prompts.csv" in refused(steer.main, "--concept=flat", "--config.steer.prompts=no/prompts.csv")


@pytest.mark.parametrize("command", [latents, benchmark])
def test_a_concept_that_is_not_a_label_is_refused(refused, command):
    assert "flat, glossy 3d, noto" in refused(command.main, "--concept=style=wooden")
    assert "style, category" in refused(command.main, "--concept=wooden")


def test_a_ratio_that_is_not_a_number_is_refused(refused):
    assert "--ratio" in refused(latents.main, "--concept=style=flat", "--ratio=big")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--worker=4/4", "--worker is '4/4'; it must be NUMBER/COUNT"),
        ("--config.benchmark.methods=plain,sldd", "did you mean sld?"),
        ("--config.benchmark.methods=steer rule=wap", "allowed: auto"),
        ("--config.benchmark.methods=sld preset=huge", "one of weak, medium, strong, max"),
        ("--config.benchmark.methods=sld strengths=-1", "only steer, difference_of_means, random_direction have"),
        ("--config.benchmark.methods=steer strengths=one", "strengths must be numbers other than 0"),
        ("--config.benchmark.methods=steer ramp=1", "steer.ramp is (1.0,); it must be two numbers"),
        ("--config.benchmark.methods=('steer timesteps=1,9',)", "steer.timesteps is (1.0, 9.0); it must be two"),
        ("--config.benchmark.methods=steer timesteps=early", "timesteps must be two numbers"),
        ("--config.benchmark.methods=steer positions=some", "allowed: all, no_padding, content"),
        (
            "--config.benchmark.methods=steer rule=swap negative_branch=no",
            "methods: steer.negative_branch is False; it must be True, because the rule swap never",
        ),
        ("--config.benchmark.methods=steer rule=transport learned=text", "the rule transport needs learned=labels"),
        ("--config.benchmark.strengths=-1,0", "config.benchmark.strengths is (-1.0, 0.0)"),
        ("--config.benchmark.prompt_sets=nowhere.csv", "prompt set 'nowhere.csv': No such file"),
        ("--config.steer.guidance=1", "guidance is 1; it must be above 1 for negative_prompt"),
    ],
)
def test_a_wrong_benchmark_is_refused(refused, flag, message):
    flags = ["--concept=style=flat", "--config.benchmark.methods=plain,negative_prompt", flag]
    assert message in refused(benchmark.main, *flags)


def test_seconds_of_a_dry_run_are_checked(refused):
    flags = ("--concept=style=flat", "--dry_run")
    assert "--seconds is 'fast'; it must be a number above 0" in refused(benchmark.main, *flags, "--seconds=fast")
