"""PyTorch and JAX meet only in files: no module imports both, and each part keeps to its side."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TORCH = {"torch", "torchvision", "transformers", "diffusers", "accelerate"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
SHARED = (
    "revelio_jax.card",
    "revelio_jax.command",
    "revelio_jax.config",
    "revelio_jax.errors",
    "revelio_jax.guidance",
    "revelio_jax.interpret.answers",
    "revelio_jax.interpret.asking",
    "revelio_jax.interpret.endpoint",
    "revelio_jax.interpret.evidence",
    "revelio_jax.interpret.marked",
    "revelio_jax.interpret.pictures",
    "revelio_jax.interpret.report",
    "revelio_jax.interpret.results",
    "revelio_jax.interpret.words",
    "revelio_jax.sites",
    "revelio_jax.store",
    "revelio_jax.tokens",
)
STEER = "revelio_jax.steering"


def modules() -> dict[str, pathlib.Path]:
    """Every module of the two packages by its dotted name."""
    found = {}
    for package in ("extract", "revelio_jax"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Dotted names that a module imports anywhere in its text, but for type checkers' eyes only."""
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
    """Top-level packages that importing a module reaches through this project's own modules."""
    seen, packages, todo = set(), set(), [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        for imported in imports(module):
            packages.add(imported.partition(".")[0])
            # Importing a.b.c runs a and a.b too.
            parts = imported.split(".")
            prefixes = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
            todo += [prefix for prefix in prefixes if prefix in MODULES]
    return packages


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("name", MODULES)
def test_no_module_reaches_the_wrong_side(name):
    packages = reached(name)
    if any(inside(name, shared) for shared in SHARED) or name == "revelio_jax":
        assert not packages & (TORCH | JAX)
    elif inside(name, STEER) or inside(name, "extract"):
        assert not packages & JAX
    elif inside(name, "revelio_jax.interpret") or inside(name, "revelio_jax.explore"):
        assert not (packages & JAX and packages & TORCH)
    else:  # training, evaluation, export: JAX's side
        assert not packages & TORCH


def test_the_adapter_needs_torch_and_safetensors_alone():
    packages = reached("revelio_jax.steering") - set(sys.stdlib_module_names)
    # huggingface_hub comes with diffusers, without which there is no pipeline to steer.
    assert packages <= {"revelio_jax", "numpy", "torch", "safetensors", "diffusers", "huggingface_hub"}


def test_the_walk_sees_what_it_should():
    assert "torch" in reached("extract.text")
    assert "torch" in reached("extract.run")  # through an import inside a function
    assert "torch" not in reached("revelio_jax.sites")  # under TYPE_CHECKING
    assert "tensorstore" in reached("revelio_jax.store")
