"""Published checkpoints of methods that change weights (ESD, UCE, RECE, MACE ...), sampled as plain pipelines.

A checkpoint is a diffusers folder, or safetensors of a U-Net, transformer or text encoder, which replace the weights of
the loaded pipeline in a block. A file is one of ``path``, or all in the folder ``path``.
"""

import contextlib
import dataclasses
import functools
import pathlib
import typing
from collections.abc import Generator, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import check_bool, check_text, check_weights_in_memory
from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import loading, weight_files
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.sampling import sample
from revelio_jax.pipelines.source import find_family

NAME = "checkpoint"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
TEXT_MODEL = "text_model."
Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """``path``: a diffusers folder, a folder of one component, or a .safetensors file.

    ``partial``: whether the file may have only some tensors of a component, for example the cross-attention layers that
    the scripts of ESD and UCE save. The other tensors are those of the loaded pipeline.
    """

    path: str
    partial: bool = False

    def __post_init__(self):
        check_text("path", self.path)
        check_bool("partial", self.partial)
        path = pathlib.Path(self.path)
        if path.suffix in PICKLES:
            raise InputError(
                f"path is {self.path!r}, a pickle, which may run code; convert it once: safetensors.torch.save_file("
                f"torch.load({path.name!r}, weights_only=True), {path.with_suffix('.safetensors').name!r})"
            )
        if not path.is_dir() and not (path.is_file() and path.suffix == ".safetensors"):
            raise InputError(f"path is {self.path!r}; it must be an existing folder or .safetensors file")

    @property
    def is_pipeline(self) -> bool:
        """Return whether the checkpoint is a whole diffusers pipeline."""
        return pathlib.Path(self.path, "model_index.json").is_file()


@contextlib.contextmanager
def checkpoint(pipe: typing.Any, phrases: Sequence[str], settings: Checkpoint) -> Generator[Sampler]:
    """Yield a sampler of the checkpoint; the phrases are ignored.

    A whole pipeline is loaded in the dtype and on the device of ``pipe``. Raise InputError if it is of another family,
    or if the tensors of a file are not those of a component.
    """
    if settings.is_pipeline:
        yield functools.partial(sample, _load(pipe, settings))
        return
    tensors = _read(settings)
    with contextlib.ExitStack() as stack:
        for name, part in _by_component(pipe, tensors, settings).items():
            stack.enter_context(_replaced(getattr(pipe, name), _checked(pipe, name, part, settings)))
        yield functools.partial(sample, pipe)


def _load(pipe: typing.Any, settings: Checkpoint) -> typing.Any:
    """Return the pipeline of a folder."""
    family, expected = find_family(settings.path, None), family_of(pipe).name
    if family != expected:
        raise InputError(f"path is {settings.path!r}, a pipeline of the family {family}; it must be {expected}")
    names = {dtype: name for name, dtype in loading.DTYPES.items()}
    dtype = names[family_of(pipe).denoiser_of(pipe).dtype]
    device = str(pipe._execution_device)
    return loading.load_pipeline(ModelConfig(id=settings.path, family=family, dtype=dtype, device=device))


def _read(settings: Checkpoint) -> Tensors:
    """Return the tensors of a file or folder. Of several variants in a folder, read the one without a name."""
    path = pathlib.Path(settings.path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise InputError(f"path is {settings.path!r}; it must contain model_index.json or .safetensors files")
    if path.is_dir() and "" in weight_files.variants_of([file.name for file in files]):
        files = [file for file in files if weight_files.variants_of([file.name]) <= {""}]
    tensors: Tensors = {}
    for file in files:
        try:
            read = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"path is {settings.path!r}; {file.name} cannot be read: {str(error)[:200]}") from error
        if repeated := tensors.keys() & read.keys():
            raise InputError(f"path is {settings.path!r}; several files have the tensor {min(repeated)}: keep one")
        tensors |= read
    return tensors


def _by_component(pipe: typing.Any, tensors: Tensors, settings: Checkpoint) -> dict[str, Tensors]:
    """Return tensors by the component of the pipeline that has most of their names.

    The names of a file of several components start with those of the components.
    """
    family = family_of(pipe)
    components = [*family.text_encoders.values(), *([family.denoiser] if family.denoiser else [])]
    if tensors and all(name.partition(".")[0] in components for name in tensors):
        parts: dict[str, Tensors] = {}
        for name, tensor in tensors.items():
            component, _, rest = name.partition(".")
            parts.setdefault(component, {})[rest] = tensor
        return parts
    matches = {
        name: len(_inner(getattr(pipe, name)).state_dict().keys() & _named(pipe, name, tensors).keys())
        for name in components
    }
    best = max(matches, key=lambda name: matches[name])
    if not matches[best]:
        raise InputError(
            f"path is {settings.path!r}; none of its {len(tensors)} tensors, such as {min(tensors, default='')!r}, "
            f"belongs to the {' or '.join(components)} of this pipeline"
        )
    return {best: tensors}


def _named(pipe: typing.Any, component: str, tensors: Tensors) -> Tensors:
    """Return tensors by the names of the installed version of transformers.

    Before version 5, names of CLIPTextModel started with text_model, and position_ids were saved.
    """
    if component == family_of(pipe).denoiser:
        return tensors
    has_prefix = any(name.startswith(TEXT_MODEL) for name in _inner(getattr(pipe, component)).state_dict())
    named: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("embeddings.position_ids"):
            continue
        name = name.removeprefix(TEXT_MODEL)
        named[TEXT_MODEL + name if has_prefix and not name.startswith("text_projection") else name] = tensor
    return named


def _checked(pipe: typing.Any, component: str, tensors: Tensors, settings: Checkpoint) -> Tensors:
    """Return tensors that replace those of a component. Raise InputError if a name or a shape differs."""
    check_weights_in_memory(NAME, getattr(pipe, component))
    own, named = _inner(getattr(pipe, component)).state_dict(), _named(pipe, component, tensors)
    start = f"path is {settings.path!r}; "
    if unknown := sorted(named.keys() - own.keys()):
        raise InputError(
            f"{start}{len(unknown)} of its {len(named)} tensors, such as {unknown[0]}, are not part of the {component}"
        )
    for name, tensor in named.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{start}{name} has the shape {list(tensor.shape)}; the {component} of this pipeline needs "
                f"{list(own[name].shape)}"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise InputError(f"{start}{name} is {tensor.dtype}; the {component} of this pipeline has {own[name].dtype}")
    present = {own[name].data_ptr() for name in named}  # a tied tensor has several names, and files only one
    missing = sorted(name for name, tensor in own.items() if name not in named and tensor.data_ptr() not in present)
    if missing and not settings.partial:
        raise InputError(
            f"{start}it lacks {len(missing)} of the {len(own)} tensors of the {component}, such as {missing[0]}; if it "
            "is meant to hold only some, set partial=True"
        )
    return named


@contextlib.contextmanager
def _replaced(module: torch.nn.Module, tensors: Tensors) -> Generator[None]:
    """Replace parameters and buffers of a module by those of ``tensors`` in the block."""
    inner = _inner(module)
    own = dict(inner.named_parameters(remove_duplicate=False)) | dict(inner.named_buffers(remove_duplicate=False))
    before = {name: own[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            own[name].data = tensor.to(before[name])
        yield
    finally:
        for name, tensor in before.items():
            own[name].data = tensor.to(own[name].device)  # offloading may have moved the component meanwhile


def _inner(module: typing.Any) -> typing.Any:
    return getattr(module, "_orig_mod", module)  # torch.compile wraps a module
