"""Choose the variant of a component's weight files: folders of fp16 weights may hold no other ones."""

import pathlib
import re

from revelio_jax.errors import InputError
from revelio_jax.pipelines.source import PipelineSource

BASES = ("model", "pytorch_model", "diffusion_pytorch_model")
ENDINGS = {"safetensors", "bin", "json", "index"}


def variant(source: PipelineSource, component: str) -> str | None:
    """Return the variant of a component's weights in a folder, for example fp16; None if it has weights without one.

    Raise InputError if there are several variants and no weights without a variant.
    """
    folder = pathlib.Path(source.id, source.folder(component))
    if not folder.is_dir():  # a hub id, whose pipelines have weights without a variant
        return None
    variants = variants_of([path.name for path in folder.iterdir()])
    if not variants or "" in variants:
        return None
    if len(variants) > 1:
        raise InputError(
            f"config.model.id is {source.id!r}; the weights of its {component} have the variants "
            f"{', '.join(sorted(variants))}; keep the files of one of them"
        )
    return variants.pop()


def variants_of(names: list[str]) -> set[str]:
    """Return the variants of weight files by their names; "" stands for files without a variant."""
    variants: set[str] = set()
    for name in names:
        base, *parts = re.sub(r"-\d+-of-\d+", "", name).split(".")
        if base in BASES and ENDINGS.intersection(parts) - {"json", "index"}:
            variants.add(".".join(part for part in parts if part not in ENDINGS))
    return variants
