"""The plot and the numbers of purity over timesteps, of SAEs and of neurons."""

import csv
import dataclasses
import subprocess
import sys

import pyarrow.compute
import pytest

from revelio_jax.errors import InputError
from revelio_jax.interpret.granularity import command, plot
from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.interpretation import interpret

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run(image_config, with_fields) -> str:
    """The run of ``image_config`` with the results of its SAE and of its neurons."""
    interpret(with_fields(image_config, top=12))
    neurons = with_fields(image_config, top=12)
    neurons = dataclasses.replace(neurons, interpret=dataclasses.replace(neurons.interpret, sae="neurons"))
    interpret(neurons)
    return image_config.run


def test_the_csv_has_the_numbers_of_the_results(run, tmp_path, capsys):
    out = tmp_path / "seen.png"
    command.main([run, "--out", str(out)])
    assert out.read_bytes().startswith(PNG)
    assert "run, neurons" in capsys.readouterr().out
    with out.with_suffix(".csv").open() as file:
        rows = {(r["sae"], r["label"], r["measure"], r["stratum"]): r for r in csv.DictReader(file)}
    run_results = results.load(results.folder_of(run))
    wanted = run_results.summary["purity"]["kind"]["measured"]["purity"]
    got = rows["topk", "kind", "purity", "all"]
    assert float(got["mean"]) == pytest.approx(wanted["mean"])
    assert float(got["low"]) == pytest.approx(wanted["low"])
    assert int(got["measured"]) == wanted["latents"]
    assert float(got["chance"]) == pytest.approx(run_results.summary["purity"]["kind"]["chance"]["purity"])
    of_501 = run_results.strata.filter(pyarrow.compute.equal(run_results.strata["stratum"], "501"))
    spread = [s for s, n in zip(of_501["spread"].to_pylist(), of_501["rows"].to_pylist(), strict=True) if n]
    assert float(rows["topk", "", "spread", "501"]["mean"]) == pytest.approx(sum(spread) / len(spread))
    assert ("neurons", "", "spread", "1") in rows


@pytest.mark.slow
def test_flags_select_labels_and_measures(run, tmp_path):
    runs = command.read_runs([run])
    assert command.panels_of(runs, ["kind"], ["purity", "spread"]) == [("kind", "purity"), ("", "spread")]
    assert command.panels_of(runs, [], ["purity"]) == [("kind", "purity"), ("style", "purity")]
    tall, short = tmp_path / "tall.png", tmp_path / "short.png"
    command.main([run, "--out", str(tall)])
    command.main([run, "--label=kind", "--measure=purity", "--out", str(short)])
    heights = [int.from_bytes(path.read_bytes()[20:24], "big") for path in (tall, short)]
    assert heights[0] > 3 * heights[1]


def test_the_table_names_runs_without_a_label(run):
    (one, *_) = command.read_runs([run])
    other = dataclasses.replace(one, summary=one.summary | {"labels": ["kind"]}, means={})
    lines = command.table([one, other], [("style", "purity"), ("kind", "purity")]).splitlines()
    assert [line.endswith("label not measured") for line in lines] == [False, False, True, False, False, False]
    assert lines[5].endswith("too few samples")


def test_run_names_are_unambiguous(run):
    runs = command.read_runs([run])
    assert [plot.run_label(one, runs) for one in runs] == [
        "unet.mid_block",
        "unet.mid_block, neurons",
    ]
    twice = [runs[0], runs[0]]
    assert plot.run_label(runs[0], twice) == "run: unet.mid_block"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no/such/run"], "no/such/run: no such folder"),
        (["TMP"], "has no summary.json; create it with revelio interpret"),
        (["RUN", "--label=shade"], "--label is 'shade'; the labels of the runs are kind, style"),
        (["RUN", "--measure=depth"], "invalid choice: 'depth'"),
        (["RUN", "--out=no/such/folder/g.png"], "--out is no/such/folder/g.png"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, flags, message):
    flags = [flag.replace("RUN", run).replace("TMP", str(tmp_path)) for flag in flags]
    with pytest.raises(InputError, match=message):
        command.main(flags)


@pytest.mark.slow
def test_the_command_exits_with_status_2_on_bad_input(tmp_path):
    command = [sys.executable, "-m", "revelio_jax.interpret.granularity", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
