"""The fields of the page, from top to bottom. :mod:`revelio_jax.explore.handlers` handles their events."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable

import gradio as gr

from revelio_jax.config import RULES
from revelio_jax.explore import requests, views
from revelio_jax.explore.backend import Backend
from revelio_jax.steering.strengths import Clamp, Strength

MAX_CONCEPTS = 6  # largest number of concepts and latents steered together
SLIDER_LIMIT = 5.0  # largest absolute strength of a slider
DEFAULT_CLAMP = 10.0  # value to set a latent to if its largest value is not known
CANVAS_SIDE = 256  # pixels; smallest larger side of the canvas for the mask
FOLDER = pathlib.Path(__file__).parent
DEFAULT, YES, NO = "default", "yes", "no"
MULTIPLY, SET = "multiply", "set"

# HTML elements with data-latent, data-token, ... report a click as the event data {kind, number}.
CLICKS = """
element.addEventListener('click', event => {
  for (const kind of ['latent', 'token', 'strength', 'example']) {
    const part = event.target.closest(`[data-${kind}]`);
    if (part && element.contains(part)) return trigger('select', {kind, number: Number(part.dataset[kind])});
  }
});
"""

Update = dict[typing.Any, typing.Any]
"""New values by field, in the form that Gradio accepts."""
Key = str | int
"""A steered concept: its text, or the number of a latent."""


@dataclasses.dataclass(frozen=True)
class ConceptRow:
    """One line of the page: a steered latent or concept, and its strength."""

    line: gr.Row
    slider: gr.Slider
    mode: gr.Radio
    remove: gr.Button

    def show(self, key: Key, name: str, strength: Strength, highest: float) -> Update:
        """Return an update that shows the line. ``highest`` is the largest known value of the latent."""
        if isinstance(strength, Clamp):
            value, low, high, step, mode = strength.value, 0.0, 2 * highest, round(highest / 100, 6), SET
            info = "the latent is set to this value at every steered position"
        else:
            value, low, high, step, mode = strength, -SLIDER_LIMIT, SLIDER_LIMIT, 0.05, MULTIPLY
            info = "-1 removes it, 1 doubles it" if isinstance(key, int) else "below 0 removes, above 0 adds"
        slider = gr.Slider(min(low, value), max(high, value), value, step=step, label=name, info=info)
        return {
            self.line: gr.Row(visible=True),
            self.slider: slider,
            self.mode: gr.Radio(value=mode, visible=isinstance(key, int)),
        }

    def hide(self) -> Update:
        """Return an update that hides the line."""
        return {self.line: gr.Row(visible=False)}


@dataclasses.dataclass(frozen=True)
class RegionFields:
    """The fields that limit steering to a region. Fields that have no effect at the hook point are hidden."""

    positions: gr.Dropdown
    negative: gr.Dropdown
    pooled: gr.Dropdown
    first: gr.Number
    last: gr.Number
    start: gr.Number
    end: gr.Number

    @property
    def parts(self) -> list:
        """Return the fields in order."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @property
    def changes(self) -> list:
        """Return the events of the fields that change the region."""
        chosen, typed = self.parts[:3], self.parts[3:]
        return [part.input for part in chosen] + [part.submit for part in typed]

    @staticmethod
    def read(values: typing.Sequence) -> dict[str, typing.Any]:
        """Return values of ``parts`` as fields of SteeringRequest. Raise InputError if a value is not allowed."""
        positions, negative, pooled, first, last, start, end = values
        choices = {DEFAULT: None, YES: True, NO: False}
        return {
            "positions": requests.positions(positions),
            "steps": requests.timesteps(first, last),
            "ramp": (
                requests.number("strength factor at the start", start, -100, 100),
                requests.number("strength factor at the end", end, -100, 100),
            ),
            "pooled": choices[pooled],
            "negative_branch": choices[negative],
        }


@dataclasses.dataclass(frozen=True)
class Fields:
    """All fields, and the state of the page.

    State: ``drawn`` is the request whose tokens and active latents are shown, ``latent`` is the number of the open
    latent, and ``concepts`` are the keys of the concepts in ``rows``, in order.
    """

    drawn: gr.State
    latent: gr.State
    concepts: gr.State
    prompt: gr.Textbox
    draw: gr.Button
    stop: gr.Button
    examples: gr.HTML
    seed: gr.Number
    steps: gr.Number
    guidance: gr.Number
    message: gr.HTML
    tokens: gr.HTML
    plain: gr.HTML
    steered: gr.HTML
    status: gr.HTML
    rows: tuple[ConceptRow, ...]
    concept: gr.Textbox
    rule: gr.Dropdown
    add: gr.Button
    auto_draw: gr.Checkbox
    region: RegionFields
    mask: gr.HTML
    strengths: gr.Textbox
    varied: gr.Dropdown
    compare: gr.Button
    strip: gr.HTML
    code: gr.Code
    active: gr.HTML
    query: gr.Textbox
    search: gr.Button
    results: gr.HTML
    latent_line: gr.Row
    name: gr.HTML
    steer: gr.Button
    maps: gr.HTML
    card: gr.HTML


def lay_out(backend: Backend, report: pathlib.Path, examples: list[str]) -> Fields:
    """Create the fields in the open gr.Blocks."""
    steer = backend.config.steer
    fields: dict[str, typing.Any] = {name: gr.State(None) for name in ("drawn", "latent")}
    fields["concepts"] = gr.State([])
    _html(lambda: _head(backend, report), "head")
    with gr.Row(elem_classes="line", elem_id="ask"):
        fields["prompt"] = gr.Textbox(
            examples[0] if examples else "",
            label="Prompt",
            placeholder="what the image shows, for example: a red apple",
            lines=1,
            max_lines=4,
            scale=8,
            min_width=240,
            elem_id="prompt",
        )
        fields["draw"] = _button("Draw", "draw", variant="primary")
        fields["stop"] = _button("Stop", "stop")
    fields["examples"] = _html(_examples(examples), "examples", visible=len(examples) > 1)
    with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row():
        fields["seed"] = gr.Number(0, label="Seed", precision=0, min_width=110, elem_id="seed")
        fields["steps"] = gr.Number(steer.steps, label="Steps", precision=0, min_width=110, elem_id="steps")
        fields["guidance"] = gr.Number(steer.guidance, label="Guidance scale", min_width=110, elem_id="guidance")
    fields["message"] = _html("", "message")
    fields["tokens"] = _html("", "tokens")
    with gr.Row(elem_id="main"):
        with gr.Column(scale=6, min_width=320):
            fields |= _image_fields(backend)
            with gr.Accordion("Where and when to steer", open=False, elem_id="where"):
                fields["region"] = _region_fields(backend)
            fields["mask"] = _mask(backend)
            fields |= _comparison_fields()
            with gr.Accordion("Python code for this image", open=False, elem_id="python"):
                fields["code"] = gr.Code("", language="python", interactive=False, show_label=False, elem_id="code")
        with gr.Column(scale=5, min_width=320):
            fields |= _latent_fields(backend)
    return Fields(**fields)


def _image_fields(backend: Backend) -> dict[str, typing.Any]:
    """Create the plain and the steered image side by side, and the lines of steered concepts."""
    fields: dict[str, typing.Any] = {}
    with gr.Row():
        fields["plain"] = _html(views.no_image("Plain"), "plain", min_width=150)
        fields["steered"] = _html(views.no_image("Steered"), "steered", min_width=150)
    fields["status"] = _html(views.hint("Draw an image, then open a latent and steer it."), "status")
    fields["rows"] = tuple(_row(i) for i in range(MAX_CONCEPTS))
    with gr.Row(elem_classes="line", visible=not backend.in_denoiser):
        fields["concept"] = gr.Textbox(
            label="Steer a concept", placeholder="glossy 3d", scale=5, min_width=150, elem_id="concept"
        )
        fields["rule"] = gr.Dropdown(
            list(RULES), value=backend.config.steer.rule, label="Rule", scale=2, min_width=110, elem_id="rule"
        )
        fields["add"] = _button("Add", "add")
    fields["auto_draw"] = gr.Checkbox(True, label="Redraw after every change", container=False, elem_id="auto-draw")
    return fields


def _row(i: int) -> ConceptRow:
    with gr.Row(visible=False, elem_classes="steer-row", elem_id=f"row-{i}") as line:
        return ConceptRow(
            line,
            gr.Slider(-SLIDER_LIMIT, SLIDER_LIMIT, -1.0, step=0.05, scale=6, min_width=220, elem_id=f"strength-{i}"),
            gr.Radio([MULTIPLY, SET], value=MULTIPLY, label="Mode", scale=3, min_width=215, elem_id=f"mode-{i}"),
            _button("Remove", f"remove-{i}", size="md"),
        )


def _region_fields(backend: Backend) -> RegionFields:
    in_text_encoder, steer = not backend.in_denoiser, backend.config.steer
    choices: dict[str, typing.Any] = {"choices": [DEFAULT, YES, NO], "min_width": 130}
    with gr.Row():
        dropdowns = (
            gr.Dropdown(
                ["all", "no_padding", "content"] if in_text_encoder else ["all"],
                value="all",
                label="Tokens",
                info="or token numbers, for example 2,5-7",
                allow_custom_value=True,
                visible=backend.sees_text,
                min_width=130,
                elem_id="positions",
            ),
            gr.Dropdown(
                value=DEFAULT if steer.negative_branch or not in_text_encoder else NO,
                label="Steer the negative prompt",
                info="in the opposite direction",
                elem_id="negative",
                **choices,
            ),
            gr.Dropdown(
                value=YES if steer.pooled and backend.takes_pooled else DEFAULT,
                label="Steer the pooled vector",
                info="CLIP's vector of the whole prompt; not for latents",
                visible=backend.takes_pooled,
                elem_id="pooled",
                **choices,
            ),
        )
    with gr.Row(visible=backend.in_denoiser):
        numbers = (
            gr.Number(1000, label="From timestep", info="1000 is pure noise", min_width=100, elem_id="first"),
            gr.Number(0, label="To timestep", info="0 is the finished image", min_width=100, elem_id="last"),
            gr.Number(1.0, label="Strength factor", info="at the start", min_width=100, elem_id="start"),
            gr.Number(1.0, label="Strength factor", info="at the end", min_width=100, elem_id="end"),
        )
    return RegionFields(*dropdowns, *numbers)


def _mask(backend: Backend) -> gr.HTML:
    """Create a canvas whose value is the painted mask as the data URL of a small PNG."""
    steer, is_image_stream = backend.config.steer, backend.in_denoiser and not backend.sees_text
    scale = max(1, round(CANVAS_SIDE / max(steer.height, steer.width)))
    with gr.Accordion("Mask: paint where to steer", visible=is_image_stream, elem_id="mask"):
        return gr.HTML(
            "",
            html_template=FOLDER.joinpath("painter.html").read_text(),
            js_on_load=FOLDER.joinpath("painter.js").read_text(),
            apply_default_css=False,
            elem_id="painted",
            columns=steer.width * scale,
            rows=steer.height * scale,
            image="",
        )


def _comparison_fields() -> dict[str, typing.Any]:
    fields: dict[str, typing.Any] = {}
    with gr.Accordion("Compare strengths", open=False, elem_id="compare"):
        with gr.Row(elem_classes="line"):
            fields["strengths"] = gr.Textbox(
                "-3,-2,-1,0,1,2,3", label="Strengths", scale=4, min_width=150, elem_id="strengths"
            )
            fields["varied"] = gr.Dropdown([], label="Latent or concept", scale=3, min_width=130, elem_id="vary")
            fields["compare"] = _button("Compare", "compare-go")
        fields["strip"] = _html("", "strip")
    return fields


def _latent_fields(backend: Backend) -> dict[str, typing.Any]:
    """Create the lists of latents, and the line and the card of the open latent."""
    fields: dict[str, typing.Any] = {}
    with gr.Tabs():
        with gr.Tab("In this image" if backend.in_denoiser else "On this prompt"):
            fields["active"] = _html(views.hint("Draw an image to list the latents that fire."), "firing")
        with gr.Tab("Search"):
            with gr.Row(elem_classes="line"):
                fields["query"] = gr.Textbox(
                    label="Search latents",
                    placeholder="a word, a tag or a number",
                    scale=5,
                    min_width=150,
                    elem_id="query",
                )
                fields["search"] = _button("Search", "find")
            fields["results"] = _html("", "results")
    with gr.Row(elem_classes="line", visible=False, elem_id="opened") as fields["latent_line"]:
        fields["name"] = _html("", "name", scale=5, min_width=200)
        fields["steer"] = _button("Steer this latent", "take")
    fields["maps"] = _html("", "maps")
    fields["card"] = _html("", "card")
    return fields


def _button(text: str, name: str, **options: typing.Any) -> gr.Button:
    return gr.Button(text, scale=1, min_width=90, elem_id=name, **options)


def _html(value: str | Callable[[], str], name: str, **options: typing.Any) -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=CLICKS, apply_default_css=False, **options)


def _head(backend: Backend, report: pathlib.Path) -> str:
    sae = backend.steerer.sae
    facts = [backend.config.model.id or "", backend.site, f"{sae.n_latents:,} latents"] + (
        [f"k = {sae.k}"] if sae.k else []
    )
    link = '<a href="report/index.html" target="_blank">Report</a>' if (report / "index.html").is_file() else ""
    return f"{link}<h1>Explorer</h1><p>{views.escape(' · '.join(facts))}</p>"


def _examples(examples: list[str]) -> str:
    chips = (
        f'<button type="button" data-example="{i}">{views.escape(text)}</button>' for i, text in enumerate(examples)
    )
    return f'<p class="chips">{"".join(chips)}</p>'
