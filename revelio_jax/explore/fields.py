"""The fields of the page, from top to bottom. What they do is in :mod:`revelio_jax.explore.handlers`."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable

import gradio as gr

from revelio_jax.config import RULES
from revelio_jax.explore import requests, views
from revelio_jax.explore.backend import Backend
from revelio_jax.steering.strengths import Clamp, Strength

MOST = 6  # concepts and latents that are steered together
REACH = 5.0  # of a slider, either way
CLAMPED = 10.0  # what a latent is set to where nothing is known of its values
PAINTED = 256  # pixels of the larger side of what is painted on, at least
HERE = pathlib.Path(__file__).parent
AS_RULE, YES, NO = "as the rule does", "yes", "no"
SCALE, SET = "multiply", "set"

# Parts of the HTML that bear one of these say which of them was clicked, as {kind, number}.
CLICKS = """
element.addEventListener('click', event => {
  for (const kind of ['latent', 'token', 'place', 'example']) {
    const part = event.target.closest(`[data-${kind}]`);
    if (part && element.contains(part)) return trigger('select', {kind, number: Number(part.dataset[kind])});
  }
});
"""

Update = dict[typing.Any, typing.Any]
"""New values of fields, by field."""
Key = str | int
"""What is steered: a concept's text, or a latent's number."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of what is steered: a latent or a concept, and its strength."""

    line: gr.Row
    slider: gr.Slider
    mode: gr.Radio
    remove: gr.Button

    def shown(self, key: Key, name: str, strength: Strength, highest: float) -> Update:
        """The line with a strength; ``highest`` is the largest value of the latent that is known."""
        value, low, high, step = strength, -REACH, REACH, 0.05
        info = "-1 takes it out, 1 doubles it" if isinstance(key, int) else "below 0 removes, above 0 adds"
        mode = SCALE
        if isinstance(strength, Clamp):
            value, low, high, step, mode = strength.value, 0.0, 2 * highest, round(highest / 100, 6), SET
            info = "its value, wherever it is steered"
        slider = gr.Slider(min(low, value), max(high, value), value, step=step, label=name, info=info)
        return {
            self.line: gr.Row(visible=True),
            self.slider: slider,
            self.mode: gr.Radio(value=mode, visible=isinstance(key, int)),
        }

    def hidden(self) -> Update:
        return {self.line: gr.Row(visible=False)}


@dataclasses.dataclass(frozen=True)
class RegionFields:
    """What steering is limited to; fields that have no meaning at the site are not shown."""

    positions: gr.Dropdown
    negative: gr.Dropdown
    pooled: gr.Dropdown
    first: gr.Number
    last: gr.Number
    start: gr.Number
    end: gr.Number

    @property
    def parts(self) -> list:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @property
    def changes(self) -> list:
        """Events of their use."""
        chosen, typed = self.parts[:3], self.parts[3:]
        return [part.input for part in chosen] + [part.submit for part in typed]

    @staticmethod
    def read(given: typing.Sequence) -> dict[str, typing.Any]:
        """Values of ``parts`` as fields of :class:`asked.Steering`. Raises InputError."""
        positions, negative, pooled, first, last, start, end = given
        chosen = {AS_RULE: None, YES: True, NO: False}
        return {
            "positions": requests.positions(positions),
            "steps": requests.timesteps(first, last),
            "ramp": (
                requests.number("strength times", start, -100, 100),
                requests.number("to times", end, -100, 100),
            ),
            "pooled": chosen[pooled],
            "negative_branch": chosen[negative],
        }


@dataclasses.dataclass(frozen=True)
class Fields:
    """All of them, and what the page remembers: ``seen``, what tokens, lists and heatmaps are of; ``chosen``,
    the latent that is open; ``steered``, what ``rows`` are of, in order."""

    seen: gr.State
    chosen: gr.State
    steered: gr.State
    prompt: gr.Textbox
    draw: gr.Button
    stop: gr.Button
    examples: gr.HTML
    seed: gr.Number
    steps: gr.Number
    guidance: gr.Number
    said: gr.HTML
    tokens: gr.HTML
    plain: gr.HTML
    changed: gr.HTML
    status: gr.HTML
    rows: tuple[Row, ...]
    concept: gr.Textbox
    rule: gr.Dropdown
    add: gr.Button
    at_once: gr.Checkbox
    where: RegionFields
    mask: gr.HTML
    strengths: gr.Textbox
    vary: gr.Dropdown
    compare: gr.Button
    strip: gr.HTML
    code: gr.Code
    firing: gr.HTML
    query: gr.Textbox
    find: gr.Button
    results: gr.HTML
    opened: gr.Row
    name: gr.HTML
    take: gr.Button
    maps: gr.HTML
    card: gr.HTML


def hint(text: str) -> str:
    """A line of advice."""
    return f'<p class="hint">{views.escaped(text)}</p>'


def lay_out(live: Backend, report: pathlib.Path, examples: list[str]) -> Fields:
    """Make the fields, in the gr.Blocks that is open."""
    steer = live.config.steer
    made: dict[str, typing.Any] = {name: gr.State(None) for name in ("seen", "chosen")}
    made["steered"] = gr.State([])
    _html(lambda: _head(live, report), "head")
    with gr.Row(elem_classes="line", elem_id="ask"):
        made["prompt"] = gr.Textbox(
            examples[0] if examples else "",
            label="Prompt",
            placeholder="what the picture shows, as a red apple",
            lines=1,
            max_lines=4,
            scale=8,
            min_width=240,
            elem_id="prompt",
        )
        made["draw"] = _button("Draw", "draw", variant="primary")
        made["stop"] = _button("Stop", "stop")
    made["examples"] = _html(_examples(examples), "examples", visible=len(examples) > 1)
    with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row():
        made["seed"] = gr.Number(0, label="Seed", precision=0, min_width=110, elem_id="seed")
        made["steps"] = gr.Number(steer.steps, label="Steps", precision=0, min_width=110, elem_id="steps")
        made["guidance"] = gr.Number(steer.guidance, label="Guidance", min_width=110, elem_id="guidance")
    made["said"] = _html("", "said")
    made["tokens"] = _html("", "tokens")
    with gr.Row(elem_id="main"):
        with gr.Column(scale=6, min_width=320):
            made |= _pictures(live)
            with gr.Accordion("Where and when", open=False, elem_id="where"):
                made["where"] = _where(live)
            made["mask"] = _mask(live)
            made |= _comparison()
            with gr.Accordion("The same in Python", open=False, elem_id="python"):
                made["code"] = gr.Code("", language="python", interactive=False, show_label=False, elem_id="code")
        with gr.Column(scale=5, min_width=320):
            made |= _latents(live)
    return Fields(**made)


def _pictures(live: Backend) -> dict[str, typing.Any]:
    """Plain and steered beside each other, and what is steered."""
    made: dict[str, typing.Any] = {}
    with gr.Row():
        made["plain"] = _html(views.no_picture("Plain"), "plain", min_width=150)
        made["changed"] = _html(views.no_picture("Steered"), "steered", min_width=150)
    made["status"] = _html(hint("Draw a picture, then steer a latent."), "status")
    made["rows"] = tuple(_row(i) for i in range(MOST))
    with gr.Row(elem_classes="line", visible=not live.in_denoiser):
        made["concept"] = gr.Textbox(
            label="Steer a concept", placeholder="glossy 3d", scale=5, min_width=150, elem_id="concept"
        )
        made["rule"] = gr.Dropdown(
            list(RULES), value=live.config.steer.rule, label="Rule", scale=2, min_width=110, elem_id="rule"
        )
        made["add"] = _button("Add", "add")
    made["at_once"] = gr.Checkbox(True, label="Draw on every change", container=False, elem_id="at-once")
    return made


def _row(i: int) -> Row:
    with gr.Row(visible=False, elem_classes="steer-row", elem_id=f"row-{i}") as line:
        return Row(
            line,
            gr.Slider(-REACH, REACH, -1.0, step=0.05, scale=6, min_width=220, elem_id=f"strength-{i}"),
            gr.Radio([SCALE, SET], value=SCALE, label="How", scale=3, min_width=215, elem_id=f"mode-{i}"),
            _button("Remove", f"remove-{i}", size="md"),
        )


def _where(live: Backend) -> RegionFields:
    text, steer = not live.in_denoiser, live.config.steer
    choice = {"choices": [AS_RULE, YES, NO], "min_width": 130}
    with gr.Row():
        chosen = (
            gr.Dropdown(
                ["all", "no_padding", "content"] if text else ["all"],
                value="all",
                label="Tokens",
                info="or numbers, as 2,5-7",
                allow_custom_value=True,
                visible=live.sees_text,
                min_width=130,
                elem_id="positions",
            ),
            gr.Dropdown(
                value=AS_RULE if steer.negative_branch or not text else NO,
                label="Negative prompt too",
                info="the other way",
                elem_id="negative",
                **choice,
            ),
            gr.Dropdown(
                value=YES if steer.pooled and live.takes_pooled else AS_RULE,
                label="Pooled vector too",
                info="CLIP's, where only concepts are steered",
                visible=live.takes_pooled,
                elem_id="pooled",
                **choice,
            ),
        )
    with gr.Row(visible=live.in_denoiser):
        typed = (
            gr.Number(1000, label="From timestep", info="1000 is noise", min_width=100, elem_id="first"),
            gr.Number(0, label="to timestep", info="0 is the picture", min_width=100, elem_id="last"),
            gr.Number(1.0, label="Strength times", info="at the first", min_width=100, elem_id="start"),
            gr.Number(1.0, label="to times", info="at the last", min_width=100, elem_id="end"),
        )
    return RegionFields(*chosen, *typed)


def _mask(live: Backend) -> gr.HTML:
    """What is painted on the picture, as the address of a PNG: light enough to go with every change."""
    steer, painting = live.config.steer, live.in_denoiser and not live.sees_text
    times = max(1, round(PAINTED / max(steer.height, steer.width)))
    with gr.Accordion("Mask: paint where to steer", visible=painting, elem_id="mask"):
        return gr.HTML(
            "",
            html_template=HERE.joinpath("painter.html").read_text(),
            js_on_load=HERE.joinpath("painter.js").read_text(),
            apply_default_css=False,
            elem_id="painted",
            columns=steer.width * times,
            rows=steer.height * times,
            picture="",
        )


def _comparison() -> dict[str, typing.Any]:
    made: dict[str, typing.Any] = {}
    with gr.Accordion("Compare over strengths", open=False, elem_id="compare"):
        with gr.Row(elem_classes="line"):
            made["strengths"] = gr.Textbox(
                "-3,-2,-1,0,1,2,3", label="Strengths", scale=4, min_width=150, elem_id="strengths"
            )
            made["vary"] = gr.Dropdown([], label="Of", scale=3, min_width=130, elem_id="vary")
            made["compare"] = _button("Compare", "compare-go")
        made["strip"] = _html("", "strip")
    return made


def _latents(live: Backend) -> dict[str, typing.Any]:
    """Lists of latents, and the one that is open."""
    made: dict[str, typing.Any] = {}
    with gr.Tabs():
        with gr.Tab("In this picture" if live.in_denoiser else "On this prompt"):
            made["firing"] = _html(hint("Latents that fire are listed once a prompt is drawn."), "firing")
        with gr.Tab("Search"):
            with gr.Row(elem_classes="line"):
                made["query"] = gr.Textbox(
                    label="Search latents",
                    placeholder="a word, a tag, a number",
                    scale=5,
                    min_width=150,
                    elem_id="query",
                )
                made["find"] = _button("Search", "find")
            made["results"] = _html("", "results")
    with gr.Row(elem_classes="line", visible=False, elem_id="opened") as made["opened"]:
        made["name"] = _html("", "name", scale=5, min_width=200)
        made["take"] = _button("Steer it", "take")
    made["maps"] = _html("", "maps")
    made["card"] = _html("", "card")
    return made


def _button(text: str, name: str, **given: typing.Any) -> gr.Button:
    return gr.Button(text, scale=1, min_width=90, elem_id=name, **given)


def _html(value: str | Callable[[], str], name: str, **given: typing.Any) -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=CLICKS, apply_default_css=False, **given)


def _head(live: Backend, report: pathlib.Path) -> str:
    sae = live.steerer.sae
    facts = [live.config.model.id, live.site, f"{sae.n_latents:,} latents"] + ([f"k {sae.k}"] if sae.k else [])
    link = '<a href="report/index.html" target="_blank">Report</a>' if (report / "index.html").is_file() else ""
    return f"{link}<h1>Explorer</h1><p>{views.escaped(' · '.join(facts))}</p>"


def _examples(examples: list[str]) -> str:
    chips = (
        f'<button type="button" data-example="{i}">{views.escaped(text)}</button>' for i, text in enumerate(examples)
    )
    return f'<p class="chips">{"".join(chips)}</p>'
