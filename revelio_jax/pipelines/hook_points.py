"""Hook points of diffusers pipelines by logical name, and one convention for what flows through them.

A site's activations are one tensor [sample, position, d], whatever the module returns: a text
encoder's layer, a block of a transformer, a U-Net block whose positions are its pixels in row order.
Layers count from 0 and mean the residual stream AFTER that layer.

    sd      clip.layer.N                        unet.mid_block, unet.up_blocks.I,
    sdxl    clip_l.layer.N, clip_g.layer.N      unet.mid_block.attentions.J, unet.up_blocks.I.attentions.J,
                                                unet.down_blocks.I.attentions.J
    flux    clip.layer.N, t5.block.N            flux.double.N.image, flux.double.N.text,
                                                flux.single.N.image, flux.single.N.text
    dit                                         dit.block.N
    text    text.layer.N, of a text encoder of its own

Modules are told apart by their attributes, so this file imports no torch and works with any version
of transformers and diffusers whose attributes are named here.
"""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import operator
import re
import typing
from collections.abc import Callable, Iterator

from revelio_jax.errors import InputError

if typing.TYPE_CHECKING:
    import torch

# The text encoders of a family: first part of the site's name -> component of the pipeline.
TEXT_ENCODERS = {
    "sd": {"clip": "text_encoder"},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "flux": {"clip": "text_encoder", "t5": "text_encoder_2"},
    "dit": {},  # pictures of a class: no text
    "text": {"text": "encoder"},
}
# Where transformers keep the layers of an encoder or a decoder: BERT and its kin, DistilBERT, BART and
# CLIP, T5, the decoders of today, GPT-2.
LAYERS = ("encoder.layer", "transformer.layer", "encoder.layers", "encoder.block", "layers", "h")
DENOISERS = {"sd": "unet", "sdxl": "unet", "flux": "transformer", "dit": "transformer"}
DENOISER_PREFIXES = ("unet", "flux", "dit")


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """One hook point of one pipeline.

    ``module`` is hooked; ``component`` is the pipeline's attribute that it belongs to; ``d`` the
    width of its activations. ``part`` is where they are in a tuple that the module returns,
    ``is_map`` whether they come as [sample, d, height, width].
    """

    name: str
    component: str
    module: "torch.nn.Module"
    d: int
    part: int = 0
    is_map: bool = False
    needs_tuple: bool = False

    def read(self, output: typing.Any) -> "torch.Tensor":
        """The activations [sample, position, d] in what ``module`` returned; a view, not a copy."""
        hidden = self._hidden(output)
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    def read_input(self, args: tuple, kwargs: dict[str, typing.Any]) -> "torch.Tensor":
        """What ``module`` was called with of the stream that :meth:`read` takes: [sample, position, d]."""
        name, place = self.argument
        hidden = kwargs[name] if name in kwargs else args[place]
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden

    @functools.cached_property
    def argument(self) -> tuple[str, int]:
        """The argument of ``module`` that brings the stream: its name, and its place if it is without."""
        name = "encoder_hidden_states" if self.needs_tuple and self.part == 0 else "hidden_states"
        forward = getattr(self.module, "_orig_mod", self.module).forward
        parameters = list(inspect.signature(forward).parameters)
        return name, parameters.index(name) if name in parameters else 0

    def replace(self, output: typing.Any, hidden: "torch.Tensor") -> typing.Any:
        """``output`` with its activations exchanged for ``hidden`` [sample, position, d].

        The result has the structure of ``output`` and its dtype; ``output`` is left as it is.
        """
        before = self._hidden(output)
        if self.is_map:
            hidden = hidden.transpose(1, 2).reshape(before.shape)
        hidden = hidden.to(before.dtype)
        if not isinstance(output, tuple):
            return hidden
        return (*output[: self.part], hidden, *output[self.part + 1 :])

    def grid(self, output: typing.Any) -> tuple[int, int] | None:
        """Height and width of the positions of what ``module`` returned, where it is a map."""
        return tuple(self._hidden(output).shape[2:]) if self.is_map else None

    def _hidden(self, output: typing.Any) -> "torch.Tensor":
        if isinstance(output, tuple):
            return output[self.part]
        if self.needs_tuple:  # text and image in one tensor: diffusers before 0.35
            raise InputError(f"site {self.name}: this diffusers joins text and image in one tensor; use 0.36 or newer")
        return output


def family(pipe: typing.Any) -> str:
    """Layout of a pipeline: "sd", "sdxl", "flux", "dit" or "text", by the components it has room for."""
    if hasattr(pipe, "encoder"):
        return "text"
    if hasattr(pipe, "transformer") and hasattr(pipe, "text_encoder_2"):
        return "flux"
    if hasattr(pipe, "text_encoder_2"):
        return "sdxl"
    if hasattr(pipe, "text_encoder"):
        return "sd"
    if hasattr(pipe, "transformer"):
        return "dit"
    raise InputError(f"{type(pipe).__name__} is no pipeline of a known layout: {', '.join(TEXT_ENCODERS)}")


def is_denoiser_site(name: str) -> bool:
    """Whether the name is of the form of a denoiser's site."""
    return name.partition(".")[0] in DENOISER_PREFIXES


def known_sites(pipe: typing.Any) -> list[str]:
    """Names of every site of the components that the pipeline holds."""
    return [site.name for site in _sites(pipe)]


def resolve(pipe: typing.Any, name: str) -> HookPoint:
    """The site of that name. Raises InputError that names those there are."""
    for site in _sites(pipe):
        if site.name == name:
            return site
    raise InputError(f"unknown hook point {name!r}; this {family(pipe)} pipeline has {abbreviate(known_sites(pipe))}")


def resolve_joined(pipe: typing.Any, name: str) -> tuple[HookPoint, ...]:
    """The sites of a name such as clip_l.layer.10+clip_g.layer.28, whose widths add up; often just one."""
    return tuple(resolve(pipe, part) for part in name.split("+"))


def hook(site: HookPoint, function: Callable[["torch.Tensor"], "torch.Tensor | None"]) -> Callable[[], None]:
    """Call ``function`` on the site's activations after every forward pass of its module.

    What it returns, if anything, takes their place. Returns what removes the hook.
    """

    def change(_args, _kwargs, output):
        hidden = function(site.read(output))
        return None if hidden is None else site.replace(output, hidden)

    return after(site.module, change)


def after(module: "torch.nn.Module", function: Callable[[tuple, dict, typing.Any], typing.Any]):
    """Call ``function`` on arguments and output of every forward pass; returns what removes it.

    What it returns, unless None, takes the output's place. It runs before the hooks that are there
    already: transformers captures hidden states by hooks that it never removes, and would miss a change
    made after them.
    """
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_hook(
            lambda _module, args, kwargs, output: function(args, kwargs, output),
            prepend=True,
            with_kwargs=True,
        )
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            output = compiled(*args, **kwargs)
            changed = function(args, kwargs, output)
            return output if changed is None else changed

        return call

    return _around_compiled(module, wrap)


def before(module: "torch.nn.Module", function: Callable[[tuple, dict], None]) -> Callable[[], None]:
    """Call ``function`` on the arguments before every forward pass, in Python; returns what removes it."""
    if getattr(module, "_compiled_call_impl", None) is None:
        handle = module.register_forward_pre_hook(
            lambda _module, args, kwargs: function(args, kwargs), prepend=True, with_kwargs=True
        )
        return handle.remove

    def wrap(compiled):
        def call(*args, **kwargs):
            function(args, kwargs)
            return compiled(*args, **kwargs)

        return call

    return _around_compiled(module, wrap)


def _around_compiled(module: "torch.nn.Module", wrap: Callable[[Callable], Callable]) -> Callable[[], None]:
    """Go around a module that was compiled in place, whose own hooks are part of what was compiled."""
    inner = module._compiled_call_impl
    outer = wrap(inner)
    current = [outer]

    def call(*args, **kwargs):
        return current[0](*args, **kwargs)

    def remove() -> None:
        current[0] = inner  # where another has gone around this one since, it stays, and does nothing
        if module._compiled_call_impl is call:
            module._compiled_call_impl = inner

    module._compiled_call_impl = call
    return remove


@contextlib.contextmanager
def captured(site: HookPoint) -> Iterator[list["torch.Tensor"]]:
    """A list that gains the activations [sample, position, d] of every forward pass in the block."""
    outputs: list[torch.Tensor] = []
    remove = hook(site, outputs.append)
    try:
        yield outputs
    finally:
        remove()


def abbreviate(names: list[str]) -> str:
    """Names in one line, numbers that only count up as a range: clip.layer.0-11, unet.mid_block."""
    groups: dict[str, list[int]] = {}
    for name in names:
        numbers = re.findall(r"\.(\d+)", name)
        # The last number counts up; those before it are part of the group's name.
        head, tail = re.match(r"(.*\.)?\d+(.*)", name).groups() if numbers else (name, "")
        groups.setdefault(f"{head}#{tail}" if numbers else name, []).append(int(numbers[-1]) if numbers else 0)
    shown = []
    for pattern, numbers in groups.items():
        first, last = numbers[0], numbers[-1]
        shown.append(pattern.replace("#", f"{first}" if first == last else f"{first}-{last}"))
    return ", ".join(shown)


def _sites(pipe: typing.Any) -> Iterator[HookPoint]:
    layout = family(pipe)
    for prefix, component in TEXT_ENCODERS[layout].items():
        if getattr(pipe, component) is not None:
            yield from _text_encoder(prefix, component, getattr(pipe, component))
    component = DENOISERS.get(layout)
    if component and getattr(pipe, component, None) is not None:
        denoiser = getattr(pipe, component)
        yield from {"flux": _flux, "dit": _dit}.get(layout, _unet)(component, denoiser)


def _text_encoder(prefix: str, component: str, encoder: "torch.nn.Module") -> Iterator[HookPoint]:
    if prefix == "t5":
        kind, layers, d = "block", encoder.encoder.block, encoder.config.d_model
    elif prefix == "text":
        kind, layers, d = "layer", _layers(encoder), encoder.config.hidden_size
    else:
        # text_model: CLIPTextModelWithProjection, and CLIPTextModel of transformers before 5.
        inner = getattr(encoder, "text_model", encoder)
        kind, layers, d = "layer", inner.encoder.layers, encoder.config.hidden_size
    for i, module in enumerate(layers):
        yield HookPoint(f"{prefix}.{kind}.{i}", component, module, d)


def _layers(model: "torch.nn.Module") -> typing.Iterable["torch.nn.Module"]:
    for path in LAYERS:
        try:
            return operator.attrgetter(path)(model)
        except AttributeError:
            continue
    raise InputError(f"{type(model).__name__} has none of {', '.join(LAYERS)}: where are its layers?")


def _unet(component: str, unet: "torch.nn.Module") -> Iterator[HookPoint]:
    widths = unet.config.block_out_channels
    down = [(f"down_blocks.{i}", b, widths[i]) for i, b in enumerate(unet.down_blocks)]
    middle = [("mid_block", unet.mid_block, widths[-1])]
    up = [(f"up_blocks.{i}", b, widths[-1 - i]) for i, b in enumerate(unet.up_blocks)]
    for path, block, d in itertools.chain(middle, up):
        yield HookPoint(f"unet.{path}", component, block, d, is_map=True)
    for path, block, d in itertools.chain(down, middle, up):
        for i, attention in enumerate(getattr(block, "attentions", ())):
            yield HookPoint(f"unet.{path}.attentions.{i}", component, attention, d, is_map=True)


def _flux(component: str, transformer: "torch.nn.Module") -> Iterator[HookPoint]:
    d = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    kinds = {"double": transformer.transformer_blocks, "single": transformer.single_transformer_blocks}
    for kind, blocks in kinds.items():
        for i, module in enumerate(blocks):
            for part, stream in enumerate(("text", "image")):
                name = f"flux.{kind}.{i}.{stream}"
                yield HookPoint(name, component, module, d, part=part, needs_tuple=True)


def _dit(component: str, transformer: "torch.nn.Module") -> Iterator[HookPoint]:
    d = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    for i, module in enumerate(transformer.transformer_blocks):
        yield HookPoint(f"dit.block.{i}", component, module, d)
