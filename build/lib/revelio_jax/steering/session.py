"""A pipeline while it is steered: its calls are followed, its hooks know the branch of guidance.

While anything is attached, the pipeline's class is one of its own that follows ``__call__`` and
``encode_prompt``; its last attachment leaves the old class behind. So steering belongs to this pipeline,
even where another one has the same components, and the branch that a text encoder runs for is known
without counting calls: prompt and negative prompt are asked for one after the other.

What changes from pass to pass (weights, masks) is written into tensors before each pass, outside of what
torch.compile sees; the hooks themselves only read tensors.
"""

import contextlib
import functools
import inspect
import typing
from collections.abc import Iterator

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import guidance, hook_points, tokens
from revelio_jax.pipelines.families import BY_NAME
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering.concept import execution_device, is_masked, tokenizer_of
from revelio_jax.steering.pooled import POOLED

if typing.TYPE_CHECKING:
    from revelio_jax.steering.attachment import Attachment, HookPointPart

_KEY = "_revelio_steering"  # where a pipeline keeps its session


class HookedPoint:
    """A hooked site of one pipeline: it adds up what its parts change, each from the same activations."""

    def __init__(self, site: hook_points.HookPoint):
        self.site = site
        self.parts: list[HookPointPart] = []
        self.active: tuple[HookPointPart, ...] = ()
        self.device = execution_device(site.module)
        self.reads_input = False
        self.grid: tuple[int, int] | None = None  # of the positions, where the site's output does not show it
        self.caught: list[torch.Tensor] | None = None
        _ = site.argument  # found now, since a compiler cannot
        self.remove = hook_points.after(site.module, self.after)

    def after(self, args: tuple, kwargs: dict, output: typing.Any) -> typing.Any:
        """``output`` with x + change; None, which leaves every bit as it is, where nothing is active."""
        if self.caught is not None:
            self.caught.append(self.site.read(output).float())
        if not self.active:
            return None
        x_BTD = self.site.read(output)
        if not torch.compiler.is_compiling() and self.device != x_BTD.device:
            self.device = x_BTD.device
            for part in self.parts:
                part.place(self.device)
        with torch.autocast(x_BTD.device.type, enabled=False):  # the SAE computes in float32
            x_BTD = x_BTD.float()
            difference_BTD = x_BTD
            if self.reads_input:
                difference_BTD = x_BTD - self.site.read_input(args, kwargs).float()
            grid = self.site.grid(output) or self.grid
            change = 0.0
            for part in self.active:
                change = change + part.change(difference_BTD if part.reads_input else x_BTD, grid)
            return self.site.replace(output, x_BTD + change)


class Session:
    """What steers one pipeline."""

    def __init__(self, pipe: typing.Any):
        self.pipe, self.cls = pipe, getattr(type(pipe), "_followed", type(pipe))
        self.layout = hook_points.family(pipe)
        self.attachments: list[Attachment] = []
        self.points: dict[str, HookedPoint] = {}
        self._watched: dict[str, typing.Callable[[], None]] = {}
        self._branch: str | None = None  # that a text encoder runs for, under encode_prompt
        self._call: dict[str, typing.Any] | None = None  # arguments of the pipeline's call
        self._told: list[str | None] = [None]
        self._grid: tuple[int, int] | None = None

    # Attaching

    def add(self, attachment: "Attachment") -> None:
        if not self.attachments:
            vars(self.pipe)[_KEY] = self
            self.pipe.__class__ = _followed(self.cls)
        self.attachments.append(attachment)
        stale = False
        for part in attachment.parts:
            name = part.site.name
            if name not in self.points:
                self.points[name] = HookedPoint(part.site)
                stale = stale or _is_compiled(getattr(self.pipe, part.site.component), part.site.module)
            point = self.points[name]
            point.parts.append(part)
            point.reads_input = any(part.reads_input for part in point.parts)
            part.device = point.device
            component = part.site.component
            if component not in self._watched:
                model = getattr(self.pipe, component)
                before = torch.compiler.disable(functools.partial(self._before, component))
                self._watched[component] = hook_points.before(model, before)
        if stale:
            torch.compiler.reset()  # code compiled before knows nothing of a hook that is new

    def discard(self, attachment: "Attachment") -> None:
        self.attachments.remove(attachment)
        for part in attachment.parts:
            point = self.points[part.site.name]
            point.parts.remove(part)
            point.active = ()
            point.reads_input = any(part.reads_input for part in point.parts)
            if not point.parts:
                point.remove()
                del self.points[part.site.name]
        for component in set(self._watched) - {point.site.component for point in self.points.values()}:
            self._watched.pop(component)()
        if not self.attachments:
            self.pipe.__class__ = self.cls
            del vars(self.pipe)[_KEY]

    # Following a call

    @contextlib.contextmanager
    def calling(self, args: tuple, kwargs: dict) -> Iterator[dict[str, typing.Any]]:
        """The arguments of a call of the pipeline; in the block its denoiser is steered."""
        bound = inspect.signature(self.cls.__call__).bind(self.pipe, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        given |= given.pop("kwargs", {})
        if self._steers_text:
            self._refuse_embeddings(given)
            if self.layout == "flux":
                given |= self._negative_of_flux(given)
        bound.apply_defaults()
        denoiser = getattr(self.pipe, hook_points.DENOISERS[self.layout])
        outside = self._call, self._grid, self._told  # of a call that this one is made in
        self._call, self._grid = bound.arguments | given, None
        try:
            with guidance.told(denoiser) as self._told:
                yield given
        finally:
            self._call, self._grid, self._told = outside
            self._rest()

    def encode_prompt(self, args: tuple, kwargs: dict) -> tuple:
        """What the pipeline's ``encode_prompt`` returns, steered."""
        original = functools.partial(self.cls.encode_prompt, self.pipe)
        call = inspect.signature(original).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        if not self._steers_text or self._is_encoded(given):
            return original(*call.args, **call.kwargs)
        if self._call is None:
            self._refuse_embeddings(given)
        if self.layout == "flux":
            branch = self._branch or CONDITIONAL
            return self._steered(branch, lambda: original(*call.args, **call.kwargs))
        guided = given["do_classifier_free_guidance"]
        given["do_classifier_free_guidance"] = False
        positive = self._steered(CONDITIONAL, lambda: original(*call.args, **call.kwargs))
        if not guided:
            return positive
        # With the prompt's embeddings given, only the negative prompt is encoded.
        given["do_classifier_free_guidance"] = True
        n = given["num_images_per_prompt"]
        given["prompt_embeds"] = positive[0][::n]
        if self.layout == "sdxl":
            given["pooled_prompt_embeds"] = positive[2][::n]
        if self._is_zero(given):
            negative = original(*call.args, **call.kwargs)
        else:
            negative = self._steered(UNCONDITIONAL, lambda: original(*call.args, **call.kwargs))
        return tuple(p if i % 2 == 0 else n for i, (p, n) in enumerate(zip(positive, negative, strict=True)))

    def _steered(self, branch: str, encode: typing.Callable[[], tuple]) -> tuple:
        """The result of ``encode`` with the text encoders steered as ``branch`` is."""
        attached = [a for a in self.attachments if a.weights(branch)]
        plain = None
        if any(a.is_joint or a.leaves_pooled for a in attached):
            plain = self._caught(encode, [a for a in attached if a.is_joint], branch)
        outside, self._branch = self._branch, branch
        try:
            encoded = encode()
        finally:
            self._branch = outside
            self._rest()
            for attachment in attached:
                attachment.forget()
        if self.layout not in POOLED or not attached:
            return encoded
        at = POOLED[self.layout][1 if branch == CONDITIONAL else 2]
        pooled = plain[at] if plain and any(a.leaves_pooled for a in attached) else encoded[at]
        for attachment in attached:
            pooled = attachment.steer_pooled(pooled, branch)
        return (*encoded[:at], pooled, *encoded[at + 1 :])

    def _caught(self, encode: typing.Callable[[], tuple], joint: list["Attachment"], branch: str) -> tuple:
        """A plain pass; of sites that are joined it catches what their change is computed from."""
        points = {part.site.name: self.points[part.site.name] for a in joint for part in a.parts}
        for point in points.values():
            point.caught = []
        outside, self._branch = self._branch, None
        try:
            # Eagerly: a compiled pass may not hand out what it computes on its way.
            with torch.compiler.set_stance("force_eager"):
                plain = encode()
            for attachment in joint:
                caught = [points[part.site.name].caught for part in attachment.parts]
                if all(caught):  # not where a pipeline takes zeros for an empty negative prompt
                    attachment.compute([each[-1] for each in caught], branch)
        finally:
            self._branch = outside
            for point in points.values():
                point.caught = None
        return plain

    @torch.no_grad()
    def _negative_of_flux(self, given: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """FLUX's negative prompt as embeddings: its pipeline encodes it as it does the prompt."""
        prompts = ("negative_prompt", "negative_prompt_2")
        if given.get("true_cfg_scale", 1.0) <= 1 or given.get("negative_prompt") is None:
            return {}
        own = ("prompt", "prompt_2", "num_images_per_prompt", "max_sequence_length")
        asked = {name: given[name] for name in own[2:] if name in given}
        lora_scale = (given.get("joint_attention_kwargs") or {}).get("scale")
        self._branch = UNCONDITIONAL
        try:
            embeddings, pooled, _ = self.pipe.encode_prompt(
                **{name: given.get(negative) for name, negative in zip(own, prompts, strict=False)},
                **asked,
                device=self.pipe._execution_device,
                lora_scale=lora_scale,
            )
        finally:
            self._branch = None
        encoded = {"negative_prompt_embeds": embeddings, "negative_pooled_prompt_embeds": pooled}
        return dict.fromkeys(prompts) | encoded

    @property
    def _steers_text(self) -> bool:
        return any(not hook_points.is_denoiser_site(name) for name in self.points)

    def _is_zero(self, given: dict[str, typing.Any]) -> bool:
        """Whether the pipeline takes zeros for the negative prompt, which no encoder then sees."""
        zeros = self.layout == "sdxl" and self.pipe.config.get("force_zeros_for_empty_prompt")
        return bool(zeros) and given["negative_prompt"] is None

    def _is_encoded(self, given: dict[str, typing.Any]) -> bool:
        """Whether it is FLUX's negative prompt, which :meth:`calling` has encoded."""
        return self._call is not None and self.layout == "flux" and given["prompt_embeds"] is not None

    @staticmethod
    def _refuse_embeddings(given: dict[str, typing.Any]) -> None:
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if given.get(name) is not None:
                raise InputError(
                    f"{name} cannot be steered: the text encoder does not run for them. Pass the prompt as "
                    "text, or make them by pipe.encode_prompt in the block and call the pipeline after it"
                )

    # Before each pass of a component

    def _before(self, component: str, args: tuple, kwargs: dict) -> None:
        """Say what the component's hooks do in the pass that begins."""
        for point in self.points.values():
            if point.site.component == component:
                if hook_points.is_denoiser_site(point.site.name):
                    point.active = self._of_denoiser(point, args, kwargs)
                else:
                    point.active = self._of_text_encoder(point, args, kwargs)

    def _of_text_encoder(self, point: HookedPoint, args: tuple, kwargs: dict) -> tuple["HookPointPart", ...]:
        if self._branch is None:
            return ()
        branch, self._branch = self._branch, None  # a concept may be encoded now, plainly
        try:
            ids_BT = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            active = []
            for part in point.parts:
                weights = part.attachment.weights(branch)
                if not weights or part.is_idle:
                    continue
                part.prepare(ids_BT.shape[1])
                part.set_weights([(weight,) for weight in weights])
                part.set_where(self._where(part, ids_BT, kwargs.get("attention_mask")))
                active.append(part)
            return tuple(active)
        finally:
            self._branch = branch

    def _where(self, part: "HookPointPart", ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor | None:
        """The positions to steer, bool [B or 1, T, 1]; None for all."""
        positions = part.attachment.positions
        if isinstance(positions, torch.Tensor):
            return _of_length(positions, ids_BT.shape[1])
        if positions == "all":
            return None
        component = part.site.component
        mask = mask_BT.cpu().numpy() if is_masked(getattr(self.pipe, component)) else None
        found = tokens.kinds(ids_BT.cpu().numpy(), tokenizer_of(self.pipe, component), mask)
        kept = torch.from_numpy(found)[..., None]
        return torch.isin(kept, torch.tensor(tokens.KEPT[positions], dtype=kept.dtype))

    def _of_denoiser(self, point: HookedPoint, args: tuple, kwargs: dict) -> tuple["HookPointPart", ...]:
        if self._call is None:
            return ()
        denoiser = getattr(self.pipe, point.site.component)
        latents = _argument(denoiser, "hidden_states", args, kwargs)
        rows = self._rows(len(latents))
        active = []
        for part in point.parts:
            attachment, factor = part.attachment, 1.0
            if attachment.follows_steps:
                timestep = float(_argument(denoiser, "timestep", args, kwargs).flatten()[0])
                factor = attachment.factor(timestep * (1000 if self.layout == "flux" else 1))
            by_branch = {branch: attachment.weights(branch) for branch in rows}
            if factor == 0 or not any(by_branch.values()):
                continue
            part.prepare(None)
            zeros = [0.0] * len(attachment.strengths)
            per_row = [[] for _ in zeros]
            for branch in sorted(rows, key=lambda branch: rows[branch].start):
                count = rows[branch].stop - rows[branch].start
                for weights, weight in zip(per_row, by_branch[branch] or zeros, strict=True):
                    weights += [factor * weight] * count
            part.set_weights([tuple(weights) for weights in per_row])
            if isinstance(attachment.positions, torch.Tensor):
                part.set_where(attachment.positions[None, :, None])
            if attachment.mask is not None:
                point.grid = self._grid = self._grid or _grid(self.layout, denoiser, latents, kwargs)
            active.append(part)
        return tuple(active)

    def _rows(self, rows: int) -> dict[str, slice]:
        """The rows of the denoiser's batch that each branch of guidance has."""
        if self.layout == "flux":
            return {self._told[-1] or CONDITIONAL: slice(0, rows)}
        if self.layout == "dit":
            guided = self._call["guidance_scale"] > 1
        else:
            guided = self.pipe.do_classifier_free_guidance
        return BY_NAME[self.layout].branches(rows, guided)

    def _rest(self) -> None:
        for point in self.points.values():
            point.active = ()


def session(pipe: typing.Any) -> Session:
    """The session of a pipeline, a new one where nothing is attached."""
    return _of(pipe) or Session(pipe)


@contextlib.contextmanager
def unsteered(pipe: typing.Any) -> Iterator[None]:
    """In the block the pipeline is as it is without steering."""
    found = _of(pipe)
    if found is None:
        yield
        return
    outside = found._call, found._branch
    found._call = found._branch = None
    del vars(pipe)[_KEY]
    try:
        yield
    finally:
        vars(pipe)[_KEY] = found
        found._call, found._branch = outside


def _of(pipe: typing.Any) -> Session | None:
    """The session of this very pipeline: one made of its class or copied from it has none."""
    found = vars(pipe).get(_KEY)
    return found if found is not None and found.pipe is pipe else None


@functools.cache
def _followed(cls: type) -> type:
    """A class that is ``cls``, but for telling the pipeline's session of its calls."""

    class Followed(cls):
        @functools.wraps(cls.__call__)
        def __call__(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            following = _of(self)
            if following is None:
                return cls.__call__(self, *args, **kwargs)
            with following.calling(args, kwargs) as given:
                return cls.__call__(self, **given)

        if hasattr(cls, "encode_prompt"):

            @functools.wraps(cls.encode_prompt)
            def encode_prompt(self, *args: typing.Any, **kwargs: typing.Any) -> tuple:
                following = _of(self)
                if following is None:
                    return cls.encode_prompt(self, *args, **kwargs)
                return following.encode_prompt(args, kwargs)

    Followed._followed = cls
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Followed, name, getattr(cls, name))
    return Followed


def _is_compiled(component: torch.nn.Module, module: torch.nn.Module) -> bool:
    """Whether ``module`` runs inside of something that is compiled, so that its hooks are compiled too."""
    return any(
        hasattr(outer, "_torchdynamo_orig_callable") or getattr(outer, "_compiled_call_impl", None)
        for outer in component.modules()
        if outer is not module and any(inner is module for inner in outer.modules())
    )


def _argument(denoiser: torch.nn.Module, name: str, args: tuple, kwargs: dict) -> torch.Tensor:
    """An argument of a denoiser's call; what it denoises is called sample or hidden_states."""
    forward = getattr(denoiser, "_orig_mod", denoiser).forward
    given = inspect.signature(forward).bind(*args, **kwargs).arguments
    return torch.as_tensor(given["sample"] if name == "hidden_states" and "sample" in given else given[name])


def _grid(layout: str, denoiser: torch.nn.Module, latents: torch.Tensor, kwargs: dict) -> tuple[int, int]:
    """Height and width of the picture in positions, of a transformer's image stream."""
    if layout == "flux":  # every position has its row and its column
        _, height, width = (int(last) + 1 for last in kwargs["img_ids"].reshape(-1, 3).amax(0))
        return height, width
    patch = denoiser.config.patch_size if layout == "dit" else 1
    return latents.shape[-2] // patch, latents.shape[-1] // patch


def _of_length(positions: torch.Tensor, length: int) -> torch.Tensor:
    if len(positions) != length:
        raise InputError(f"positions has {len(positions)} entries; prompts have {length} tokens here")
    return positions[None, :, None]
