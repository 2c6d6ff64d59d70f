"""revelio splice and revelio scan on the miniature, with few prompts and steps."""

import dataclasses
import json

import pytest
import torch

from revelio_jax.commands import main
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.faithfulness import experiment, scan, splice
from revelio_jax.steering.hub import write_sae
from revelio_jax.steering.sae import Sae
from tests.helpers import ROOT

SMALL = ["--prompts=3", "--reference=4", "--timesteps=500", "--config.steer.steps=2"]
BLOCK = "unet.up_blocks.0"


def near_identity(d: int, **metadata) -> Sae:
    """Return an SAE that reconstructs rows up to a factor: both signs of every coordinate are latents."""
    W_dec_FD = torch.cat([torch.eye(d), -torch.eye(d)])
    metadata = {"model_id": "extract/miniature/sd", "family": "sd", "value": "output"} | metadata
    return Sae(0.9 * W_dec_FD.T, torch.zeros(2 * d), W_dec_FD, torch.zeros(d), d, metadata)


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """A function that writes the SAE folder of a run and returns the flag of the run."""
    monkeypatch.chdir(ROOT)

    def write(sae: Sae):
        folder = tmp_path / "run" / "export"
        folder.mkdir(parents=True)
        tensors = {name: value.contiguous() for name, value in vars(sae).items() if isinstance(value, torch.Tensor)}
        write_sae(dataclasses.replace(sae, **tensors), folder)
        return f"--config.run={folder.parent}"

    return write


@pytest.mark.slow
def test_splice_ranks_a_good_sae_above_untrained_ones(run_of, tmp_path, capsys):
    flag = run_of(near_identity(128, site="clip.layer.2", positions="all"))
    splice.main(["--config=mini_sd", flag, *SMALL])
    record = json.loads((tmp_path / "run" / "splice.json").read_text())
    shown = capsys.readouterr().out
    assert set(record["figures"]) == {"embedding", "loss", "pixels", "accuracy"}
    embedding = record["figures"]["embedding"]
    assert embedding["recovered"]["trained SAE"]["low"] > 0.5
    assert embedding["recovered"]["mean"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert embedding["not_above"] == []
    assert embedding["plain"]["mean"] == 0.0
    assert set(record["loss_by_timestep"]) == {"500"}
    assert record["rows"] == {"positions": "all", "timesteps": [], "difference": False}
    assert record["judge"]["name"] == "miniature"
    assert record["versions"]["torch"] == torch.__version__
    assert "trained SAE" in shown
    assert "recovered share (95 % interval)" in shown


@pytest.mark.slow
def test_splice_of_a_block_measures_trained_timesteps_and_has_no_embedding(run_of, tmp_path, capsys):
    flag = run_of(near_identity(128, site=BLOCK))
    small = ["--prompts=3", "--reference=4", "--config.steer.steps=15", "--config.extract.timesteps=932,132"]
    splice.main(["--config=mini_sd_unet", flag, *small, "--nopicture"])
    record = json.loads((tmp_path / "run" / "splice.json").read_text())
    assert set(record["figures"]) == {"loss"}
    assert set(record["loss_by_timestep"]) == {"932", "132"}
    assert record["notes"] == ["the pictures are spliced at 2 of 15 steps, those of the trained timesteps"]


WRONG = {
    "--prompts=1": "--prompts is 1; it must be at least 2",
    "--timesteps=1000": "--timesteps contains 1000; this model has timesteps 0 to 999",
    "--timesteps=x": "--timesteps is 'x'; it must be whole numbers such as 100,500",
    "--config.model.id=other": "config.model.id is 'other'; the SAE was trained on 'extract/miniature/sd'",
    "--config.steer.prompts=": "config.steer.prompts is not set; it must be a file of prompts",
    "--config.run=": "config.run is not set",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_input_is_one_line(flag, run_of):
    run = run_of(near_identity(128, site="clip.layer.2", positions="all"))
    with pytest.raises(InputError) as caught:
        splice.main(["--config=mini_sd", run, *SMALL, flag])
    assert WRONG[flag] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_timesteps_that_the_sae_was_not_trained_on_are_refused(run_of):
    run = run_of(near_identity(128, site=BLOCK))
    with pytest.raises(InputError, match="--timesteps contains 500; the SAE was trained on the timesteps 932, 732"):
        splice.main(["--config=mini_sd_unet", run, *SMALL])
    with pytest.raises(
        InputError, match=r"no activations of unet\.up_blocks\.0 were recorded: config.steer.steps is 2"
    ):
        splice.main(["--config=mini_sd_unet", run, *SMALL, "--timesteps=932"])


@pytest.mark.parametrize(("field", "trained"), [("timesteps", (900, 100)), ("pool", "mean")])
def test_a_config_of_other_rows_than_the_runs_is_refused(run_of, tmp_path, field, trained):
    flag = run_of(near_identity(128, site=BLOCK))
    config = dataclasses.replace(Config(), extract=dataclasses.replace(Config().extract, **{field: trained}))
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    with pytest.raises(InputError, match=rf"config.extract.{field} is .*; the run was trained with .*: use --config "):
        splice.main(["--config=mini_sd", flag, *SMALL])


@pytest.mark.slow
def test_scan_of_two_hook_points_writes_tables_and_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run, points = tmp_path / "run", ("clip.layer.2", "unet.up_blocks.1")
    sites = [f"--site={name}" for name in points]
    scan.main(["--config=mini_sd", f"--config.run={run}", *SMALL, "--pairs=2", *sites])
    record = json.loads((run / "scan.json").read_text())
    text, block = (record["sites"][name] for name in points)
    assert set(text["ablation"]) == {"embedding", "loss", "pixels", "accuracy"}
    assert set(block["ablation"]) == {"loss", "pixels", "accuracy"}
    assert set(text["interchange"]["style"]) == {"words", "other tokens"}
    # The last block determines the prediction.
    assert block["interchange"]["category"]["all positions"] == record["plain_pairs"]["category"]["second"]
    table = (run / "scan.md").read_text()
    assert table in capsys.readouterr().out
    assert "| `clip.layer.2` | words |" in table
    assert (run / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_scan_refuses_an_unknown_hook_point(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        main(["scan", "--config=mini_sd", f"--config.run={tmp_path}", "--site=unet.block.9"])
    assert caught.value.code == 2
    assert "unknown hook point 'unet.block.9'" in capsys.readouterr().err


def test_a_figure_without_damage_is_not_defined_and_says_so():
    plain = {"loss": torch.rand(6, 2).numpy()}
    rows = {name: {"loss": plain["loss"]} for name in ("trained SAE", "random dictionary", "untrained SAE", "mean")}
    run = experiment.Experiment(None, None, None, None, None, None, None, plain)
    result = splice._result(run, rows, "loss")
    assert result["recovered"] == {}
    assert "the ablation changes nothing that can be measured" in result["undefined"]
    table = splice.describe({"loss": result}, "site", {"prompts": 6, "images": 6})
    assert "the recovered share is not defined" in table
