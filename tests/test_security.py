"""The claims of docs/security.md about code: no pickles, no code of others, no shell, and few openers of images."""

import ast
import json
import pickle
import shutil

import pytest

from revelio_jax.errors import InputError
from tests.helpers import MINIATURES
from tests.test_imports import MODULES, imports

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
# The function that runs config files, which are programs.
MAY_RUN_CODE = {"revelio_jax.cli"}
# The first one opens images of others; the others open files that this project has just written or limits them.
MAY_OPEN_IMAGES = {
    "revelio_jax.inputs.images",
    "extract.artifacts",
    "extract.miniature.data",
    "revelio_jax.explore.requests",
    "revelio_jax.interpret.report.thumbnails",
    "revelio_jax.interpret.tags.local_model",
}


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Return every call in a module, with the text of the called expression."""
    tree = ast.parse(MODULES[name].read_text())
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_unpickles_nothing_and_runs_no_code_of_others(name):
    packages = {imported.partition(".")[0] for imported in imports(name)}
    if "pickle.UnpicklingError" in imports(name):
        assert not [other for other in imports(name) if other.startswith("pickle.")][1:]
        packages.remove("pickle")
    assert not packages & UNSAFE_MODULES
    for function, call in calls(name):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert function not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"), (
            ast.unparse(call)
        )
        assert function not in ("torch.load", "torch.jit.load", "torch.hub.load"), ast.unparse(call)
        assert not function.endswith("exec_module") or name in MAY_RUN_CODE
        assert options.get("allow_pickle", "False") == "False"
        assert options.get("trust_remote_code", "False") == "False"
        assert options.get("use_safetensors", "True") == "True"
        assert options.get("shell", "False") == "False"
        assert "custom_pipeline" not in options
        assert not function.endswith("Image.open") or name in MAY_OPEN_IMAGES


def test_auto_classes_of_transformers_get_an_explicit_no():
    """Without it, transformers asks on a terminal whether to run code of the folder."""
    for name in (
        "revelio_jax.pipelines.loading",
        "revelio_jax.benchmark.embedders",
        "revelio_jax.interpret.tags.local_model",
    ):
        assert "transformers.Auto" in MODULES[name].read_text()
        assert "trust_remote_code" in MODULES[name].read_text()


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.slow
def test_weights_in_a_pickle_run_no_code(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from revelio_jax.pipelines.loading import load_text_encoder
    from revelio_jax.pipelines.source import find

    model = tmp_path / "model"
    shutil.copytree(MINIATURES / "sd", model, ignore=shutil.ignore_patterns("*.safetensors", "*.csv"))
    pickled = pickle.dumps(Evil(tmp_path / "ran"))
    (model / "text_encoder" / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(InputError, match="its text_encoder cannot be loaded"):
        load_text_encoder(find(str(model), None, "sd"), "text_encoder", "float32")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled).close()
    assert (tmp_path / "ran").exists()  # the pickle does run code where it is opened


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_python_files_of_a_model_are_not_run(file, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    from revelio_jax.pipelines.loading import load_text_encoder
    from revelio_jax.pipelines.source import find

    shutil.copytree(MINIATURES / "sd" / "text_encoder", tmp_path / "model")
    for path in (MINIATURES / "sd" / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "model" / file).read_text())
    kinds = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoModelForTextEncoding")
    config["auto_map"] = {kind: ["evil.Evil", "evil.Evil"] if "Tokenizer" in kind else "evil.Evil" for kind in kinds}
    (tmp_path / "model" / file).write_text(json.dumps(config))
    source = find(str(tmp_path / "model"), None, "text")
    try:
        load_text_encoder(source, next(iter(source.layout.text_encoders.values())), "float32")
    except InputError as error:
        assert "cannot be loaded" in str(error)  # noqa: PT017 - loading without the code is as good
    assert not (tmp_path / "ran").exists()
