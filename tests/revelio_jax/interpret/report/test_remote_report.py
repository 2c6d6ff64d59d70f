"""Interpretation and the report of a run on a real S3 server."""

import json
import pathlib

import pytest

from revelio_jax.interpret import command
from revelio_jax.interpret.report import command as report_command
from revelio_jax.store import layout
from tests.helpers.s3 import s3, s3_server  # noqa: F401

RUN = "s3://bucket/runs/report"


@pytest.mark.slow
def test_results_and_report_are_written(s3, image_config, with_fields, tmp_path, capsys):  # noqa: F811
    kvstore = layout.open_kvstore(RUN)
    export = pathlib.Path(image_config.run, "export")
    for path in export.iterdir():
        kvstore.write(f"export/{path.name}", path.read_bytes()).result()
    (tmp_path / "remote.json").write_text(with_fields(image_config, run=RUN, top=12).to_json())

    command.main([f"--config={tmp_path / 'remote.json'}"])
    assert f"results: {RUN}/latents\nreport: {RUN}/report/index.html\n" in capsys.readouterr().out
    keys = {key.decode() for key in kvstore.list().result()}
    assert {"latents/summary.json", "latents/arrays.safetensors", "report/index.html"} <= keys
    assert not [key for key in keys if ".part" in key]
    summary = json.loads(kvstore.read("latents/summary.json").result().value)
    assert summary["name"] == "report"
    assert summary["sae"]["folder"] == f"{RUN}/export"

    s3.requests.clear()
    command.main([f"--config={tmp_path / 'remote.json'}"])  # reuses the results
    assert "already has the results" in capsys.readouterr().out
    assert not [each for each in s3.requests if each.method == "PUT" and each.key.startswith("runs/report/latents")]
    report_command.main([f"--config={tmp_path / 'remote.json'}"])
    assert capsys.readouterr().out == f"report: {RUN}/report/index.html\n"
