"""Every command that runs a pipeline loads it in one place, so all of them honor every field of config.model."""

import ast
import dataclasses

import pytest
import torch

from revelio_jax.commands import COMMANDS, import_command
from revelio_jax.pipelines import placement
from revelio_jax.steering.hub import write_sae
from revelio_jax.steering.sae import Sae
from tests.helpers import ROOT
from tests.test_imports import MODULES, imports

LOADING = "revelio_jax.pipelines.loading"
# Modules that call from_pretrained themselves: loading, models that only describe images, and training of miniatures.
LOADERS = {
    LOADING,
    "revelio_jax.benchmark.embedders",
    "revelio_jax.interpret.tags.local_model",
    "revelio_jax.benchmark.clip_judge",
}
# The arguments with which each command that runs a pipeline reaches it.
LABEL = "style=glossy 3d"
ARGUMENTS = {
    "extract": [],
    "learn": [f"--concept={LABEL}"],
    "steer": [f"--concept={LABEL}", "--measure=0"],
    "sweep": [f"--concept={LABEL}", "--measure=0"],
    "benchmark": [f"--concept={LABEL}"],
    "explore": ["--port=0"],
    "splice": [],
    "scan": [],
}


class Placed(Exception):
    """The command has loaded and placed its pipeline; the test ends it here."""


def modules_of(name: str) -> set[str]:
    """Return the project's modules that importing a module loads."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module in MODULES and module not in seen:
            seen.add(module)
            todo += imports(module) | {each.rpartition(".")[0] for each in imports(module)}
    return seen


def loaders() -> set[str]:
    """Return the modules that load models of diffusers or transformers, or pipelines of the shipped miniatures."""
    return {
        name
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("from_pretrained", "from_single_file")
        and ast.unparse(node.value) != "Steerer"
    }


def test_models_are_loaded_in_one_module():
    assert {name for name in loaders() if not name.startswith("extract.miniature.")} == LOADERS


def test_every_command_that_runs_a_pipeline_is_tested_below():
    def runs_a_pipeline(module: str) -> bool:
        return any(f"{LOADING}.load_pipeline" in imports(each) for each in modules_of(module))

    found = {command for command, (module, _, _) in COMMANDS.items() if runs_a_pipeline(module)}
    assert set(ARGUMENTS) == found | {"extract"}  # extraction fingerprints the weights before it places them


@pytest.fixture
def run(tmp_path):
    """The folder of a run of the miniature with a random SAE."""
    W_dec_FD = torch.nn.functional.normalize(torch.randn(16, 128), dim=1)
    metadata = {"site": "clip.layer.2", "model_id": "extract/miniature/sd", "family": "sd"}
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    write_sae(Sae(W_dec_FD.T.contiguous(), torch.zeros(16), W_dec_FD, torch.zeros(128), 4, metadata), folder)
    return folder.parent


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_places_its_pipeline_as_configured(command, offload, run, tmp_path, monkeypatch):
    packages = {"explore": "gradio", "sweep": "matplotlib"}
    if command in packages:
        pytest.importorskip(packages[command], reason=f"{packages[command]} is not installed")
    monkeypatch.chdir(ROOT)
    place, seen = placement.place, {}

    def place_and_stop(source, pipe, components, model, device):
        place(source, pipe, components, model, device)
        encoder = pipe.text_encoder
        seen.update(dataclasses.asdict(model), hooked=hasattr(encoder, "_hf_hook"))
        seen["devices"] = {parameter.device.type for parameter in encoder.parameters()}
        seen["dtypes"] = {parameter.dtype for parameter in encoder.parameters()}
        raise Placed

    monkeypatch.setattr(placement, "place", place_and_stop)
    fields = ["device=cpu", "dtype=bfloat16", f"offload={offload}"]
    flags = ["--config=mini_sd", f"--config.run={run}", f"--config.extract.store={tmp_path / 'store'}"]
    with pytest.raises(Placed):
        import_command(command).main([*flags, *(f"--config.model.{field}" for field in fields), *ARGUMENTS[command]])
    assert seen["offload"] == offload
    assert seen["hooked"] == (offload != "none")
    assert seen["devices"] == {"meta" if offload == "sequential" else "cpu"}
    assert seen["dtypes"] == {torch.bfloat16}
