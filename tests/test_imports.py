"""No module imports both PyTorch and JAX, and modules import only from the layers above their own."""

import ast
import pathlib
import sys

import pytest

from tests.helpers import ROOT

TORCH = {"torch", "torchvision", "transformers", "diffusers", "accelerate"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# Packages and modules that need neither torch nor JAX.
NEUTRAL = (
    "revelio_jax.chat_endpoint",
    "revelio_jax.checksums",
    "revelio_jax.cli",
    "revelio_jax.commands",
    "revelio_jax.config",
    "revelio_jax.errors",
    "revelio_jax.evaluation.frontier",
    "revelio_jax.evaluation.measures",
    "revelio_jax.file_locks",
    "revelio_jax.files",
    "revelio_jax.json_text",
    "revelio_jax.inputs",
    "revelio_jax.interpret.embeddings.embedding_file",
    "revelio_jax.interpret.embeddings.process",
    "revelio_jax.interpret.measures",
    "revelio_jax.interpret.report",
    "revelio_jax.interpret.sample_images",
    "revelio_jax.interpret.tags.annotation",
    "revelio_jax.interpret.tags.answers",
    "revelio_jax.interpret.tags.endpoint",
    "revelio_jax.interpret.tags.evidence",
    "revelio_jax.interpret.tags.questions",
    "revelio_jax.interpret.token_text",
    "revelio_jax.interpret.latents.results",
    "revelio_jax.pipelines.guidance",
    "revelio_jax.pipelines.families",
    "revelio_jax.pipelines.hook_points",
    "revelio_jax.pipelines.hooks",
    "revelio_jax.pipelines.tokens",
    "revelio_jax.plot_style",
    "revelio_jax.presets",
    "revelio_jax.run_folders",
    "revelio_jax.sae_folder",
    "revelio_jax.store",
)
TORCH_ONLY = (
    "revelio_jax.steering",
    "revelio_jax.pipelines",
    "revelio_jax.baselines",
    "revelio_jax.benchmark",
    "revelio_jax.faithfulness",
    "extract",
)
# A package or module imports only from its own layer and the layers above it in this list. Packages of one
# layer do not import each other; commands may.
LAYERS = (
    ("errors", "json_text", "plot_style"),
    ("config", "presets"),
    ("chat_endpoint", "checksums", "file_locks"),
    ("files", "shipped"),
    ("store",),
    ("cli",),
    ("inputs", "run_folders", "sae_folder"),
    ("sae", "pipelines"),
    ("training",),
    ("evaluation",),
    ("extract", "planning", "train", "grid", "evaluate", "export", "plan", "plot"),
    ("steering",),
    ("baselines",),
    ("benchmark",),
    ("faithfulness",),
    ("interpret",),
    ("explore",),
    ("extract.miniature",),
    ("commands",),
    ("__main__",),
)


def modules() -> dict[str, pathlib.Path]:
    """Return every module of the two packages by its dotted name."""
    found = {}
    for package in ("extract", "revelio_jax"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Return the dotted names that a module imports anywhere, except under TYPE_CHECKING."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not ast.unparse(node.test).endswith("TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{name}: a relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(MODULES[name].read_text()))
    return found


def reached(name: str) -> set[str]:
    """Return the top-level packages that importing a module loads, through this project's own modules too."""
    seen, packages, todo = set(), set(), [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for imported in imports(module):
            packages.add(imported.partition(".")[0])
            # Importing a.b.c also runs a and a.b.
            parts = imported.split(".")
            prefixes = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
            todo += [prefix for prefix in prefixes if prefix in MODULES]
    return packages


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name", MODULES)
def test_no_module_reaches_both_torch_and_jax(name):
    packages = reached(name)
    if any(inside(name, neutral) for neutral in NEUTRAL) or name == "revelio_jax":
        assert not packages & (TORCH | JAX)
    elif any(inside(name, side) for side in TORCH_ONLY):
        assert not packages & JAX
    elif inside(name, "revelio_jax.interpret") or inside(name, "revelio_jax.explore"):
        assert not (packages & JAX and packages & TORCH)
    else:  # training, evaluation and export use JAX
        assert not packages & TORCH


def test_the_adapter_needs_only_torch_and_safetensors():
    packages = reached("revelio_jax.steering") - set(sys.stdlib_module_names)
    # diffusers, whose pipelines are steered, depends on huggingface_hub.
    assert packages <= {"revelio_jax", "ml_dtypes", "numpy", "torch", "safetensors", "diffusers", "huggingface_hub"}


def test_the_scan_finds_imports_in_functions_and_ignores_type_checking():
    assert "torch" in reached("extract.text_encoder")
    assert "torch" in reached("extract.run")  # through an import inside a function
    assert "torch" not in reached("revelio_jax.pipelines.hook_points")  # under TYPE_CHECKING
    assert "tensorstore" in reached("revelio_jax.store")


def layer_of(name: str) -> int:
    """Return the number of a module's layer, -1 for the package itself."""
    if name == "revelio_jax":
        return -1
    unit = name.removeprefix("revelio_jax.")
    unit = "extract.miniature" if inside(name, "extract.miniature") else unit.partition(".")[0]
    (found,) = [number for number, layer in enumerate(LAYERS) if unit in layer]
    return found


def own_imports(name: str) -> set[str]:
    """Return the modules of this project that a module imports, without the packages that contain them."""
    found = {imported for imported in imports(name) if imported in MODULES}
    return {one for one in found if not any(inside(other, one) and other != one for other in found)}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_imports_from_a_layer_below_it(name):
    upwards = [imported for imported in own_imports(name) if layer_of(imported) > layer_of(name)]
    assert not upwards


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_a_main_module(name):
    assert not [imported for imported in own_imports(name) if imported.endswith("__main__")]


def test_no_two_modules_import_each_other():
    reachable = {name: own_imports(name) for name in MODULES}
    for name in MODULES:
        seen: set[str] = set()
        todo = list(reachable[name])
        while todo:
            if (module := todo.pop()) not in seen:
                seen.add(module)
                todo += reachable[module]
        assert name not in seen, f"{name} imports itself through other modules"


def test_no_file_is_longer_than_400_lines():
    files = [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]
    long = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert not {name: lines for name, lines in long.items() if lines > 400}
