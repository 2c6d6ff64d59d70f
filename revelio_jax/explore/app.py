"""The page: its fields, and what happens when they are used.

Every handler gives back only what it changes. What a person got wrong, and what a pipeline fails at, is one
line in the page; nothing else of the page is lost.
"""

import functools
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator

import gradio as gr
import numpy as np

from revelio_jax.config import RULES
from revelio_jax.errors import InputError
from revelio_jax.explore import asked, show
from revelio_jax.explore.asked import Sampling, Steering
from revelio_jax.explore.known import Known
from revelio_jax.explore.live import Live
from revelio_jax.explore.snippet import snippet
from revelio_jax.steering.attachment import Clamp, Strength
from revelio_jax.steering.strengths import parse_strengths

MOST = 6  # concepts and latents that are steered together
LISTED = 40  # latents of a list
STRIP = 15  # pictures of a strip
REACH = 5.0  # of a slider, either way
CSS = pathlib.Path(__file__).with_name("style.css")
FONTS = {
    "font": ["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    "font_mono": ["ui-monospace", "Menlo", "Consolas", "monospace"],
}
# A click on any part that bears one of these says which, as {kind: number}.
CLICKS = """
element.addEventListener('click', event => {
  for (const kind of ['latent', 'token', 'place', 'example']) {
    const part = event.target.closest(`[data-${kind}]`);
    if (part && element.contains(part)) return trigger('select', {kind, number: Number(part.dataset[kind])});
  }
});
"""
AS_RULE, YES, NO = "as the rule does", "yes", "no"
SCALE, SET = "multiply", "set"
LATENT_OF_URL = "latent"

Update = dict[typing.Any, typing.Any]
Key = str | int


def theme() -> gr.themes.Base:
    """System fonts: Gradio's own would be asked of another host, or shipped."""
    return gr.themes.Default(primary_hue="orange", neutral_hue="slate", radius_size="md", **FONTS)


def build(live: Live, known: Known, report: pathlib.Path, examples: list[str]) -> gr.Blocks:
    """The page of one pipeline; ``report`` is where its report is, once it is made, ``examples`` are prompts."""
    steer = live.config.steer
    size = steer.height, steer.width
    crisp = ["picture", "crisp"] if max(size) < 256 else ["picture"]
    stopping: set[str] = set()  # sessions whose picture is to end

    with gr.Blocks(
        analytics_enabled=False,
        title=f"{live.site}: latents of {live.config.model.id}",
        delete_cache=(600, 3600),
    ) as page:
        seen = gr.State(None)  # the Sampling that tokens, heatmaps and lists are of
        chosen = gr.State(None)  # the latent that is open
        steered = gr.State([])  # what the rows of strengths are of

        gr.HTML(lambda: _head(live, report), elem_id="head")
        with gr.Row(elem_classes="line"):
            prompt = gr.Textbox(
                examples[0] if examples else "",
                label="Prompt",
                placeholder="what the picture shows, as a red apple",
                lines=1,
                max_lines=4,
                scale=8,
                min_width=240,
                elem_id="prompt",
            )
            draw = gr.Button("Draw", variant="primary", scale=1, min_width=90, elem_id="draw")
            stop = gr.Button("Stop", scale=1, min_width=90, elem_id="stop")
        samples = gr.HTML(_examples(examples), js_on_load=CLICKS, visible=len(examples) > 1)
        with gr.Accordion("Sampling", open=False), gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, min_width=110, elem_id="seed")
            steps = gr.Number(steer.steps, label="Steps", precision=0, min_width=110, elem_id="steps")
            guidance = gr.Number(steer.guidance, label="Guidance", min_width=110, elem_id="guidance")
        said = gr.HTML("", elem_id="said")
        tokens = gr.HTML("", js_on_load=CLICKS, elem_id="tokens")

        with gr.Row():
            with gr.Column(scale=6, min_width=320):
                with gr.Row():
                    image = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
                    plain = gr.Image(
                        label="Plain", elem_id="plain", elem_classes=crisp, min_width=150, **image
                    )
                    changed = gr.Image(
                        label="Steered", elem_id="steered", elem_classes=crisp, min_width=150, **image
                    )
                status = gr.HTML(_hint("Draw a picture, then steer a latent."), elem_id="status")

                rows = [_Row(i) for i in range(MOST)]
                with gr.Row(elem_classes="line", visible=not live.in_denoiser):
                    concept = gr.Textbox(
                        label="Steer a concept",
                        placeholder="glossy 3d",
                        scale=5,
                        min_width=150,
                        elem_id="concept",
                    )
                    rule = gr.Dropdown(
                        list(RULES), value=steer.rule, label="Rule", scale=2, min_width=110, elem_id="rule"
                    )
                    add = gr.Button("Add", scale=1, min_width=80, elem_id="add")
                at_once = gr.Checkbox(True, label="Draw on every change", elem_id="at-once")
                with gr.Accordion("Where and when", open=False, elem_id="where"):
                    where = _Where(live)
                with gr.Accordion(
                    "Mask: paint where to steer", open=True, visible=where.takes_mask, elem_id="mask"
                ):
                    mask = gr.ImageEditor(
                        _canvas(np.full((*size, 3), 200, np.uint8)) if where.takes_mask else None,
                        label="Mask",
                        show_label=False,
                        sources=(),
                        transforms=(),
                        layers=False,
                        buttons=[],
                        brush=gr.Brush(default_size=48, colors=["#ea580c"], color_mode="fixed"),
                        format="png",
                        height=430,
                        elem_id="painted",
                    )
                with gr.Accordion("Compare over strengths", open=False, elem_id="compare"):
                    with gr.Row(elem_classes="line"):
                        strengths = gr.Textbox(
                            "-3,-2,-1,0,1,2,3", label="Strengths", scale=4, min_width=150, elem_id="strengths"
                        )
                        vary = gr.Dropdown([], label="Of", scale=3, min_width=130, elem_id="vary")
                        compare = gr.Button("Compare", scale=1, min_width=100, elem_id="compare-go")
                    strip = gr.HTML("", js_on_load=CLICKS, elem_id="strip")
                with gr.Accordion("The same in Python", open=False, elem_id="python"):
                    code = gr.Code("", language="python", interactive=False, show_label=False, elem_id="code")
            with gr.Column(scale=5, min_width=320):
                card = gr.HTML("", js_on_load=CLICKS, elem_id="card")
                take = gr.Button("Steer this latent", visible=False, elem_id="take")
                maps = gr.HTML("", elem_id="maps")
                with gr.Tabs():
                    with gr.Tab("On this prompt" if not live.in_denoiser else "In this picture"):
                        firing = gr.HTML(
                            _hint("Latents that fire are listed once a prompt is drawn."),
                            js_on_load=CLICKS,
                            elem_id="firing",
                        )
                    with gr.Tab("Search"):
                        with gr.Row(elem_classes="line"):
                            query = gr.Textbox(
                                label="Search latents",
                                placeholder="a word, a tag, a number",
                                scale=5,
                                min_width=150,
                                elem_id="query",
                            )
                            find = gr.Button("Search", scale=1, min_width=90, elem_id="find")
                        results = gr.HTML("", js_on_load=CLICKS, elem_id="results")

        # Handlers. Each yields updates; those of a failure are one line.

        def told(handler: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
            @functools.wraps(handler)  # Gradio reads the names of its own arguments
            def run(*given: typing.Any) -> Iterator[Update]:
                try:
                    yield {said: ""}
                    yield from handler(*given)
                except InputError as error:
                    yield {said: show.message(str(error))}
                except Exception as error:  # of a pipeline, whatever it is: the next one may do
                    logging.getLogger(__name__).exception("the pipeline failed")
                    text = " ".join(str(error).split())[:300]
                    yield {said: show.message(f"the pipeline failed: {type(error).__name__}: {text}")}

            return run

        sampled = [prompt, seed, steps, guidance]
        asks = [rule, *where.parts, mask, steered, *(part for row in rows for part in (row.mode, row.slider))]
        view = [tokens, firing, maps]

        def the_sampling(given: typing.Sequence) -> Sampling:
            return asked.sampling(*given, size)

        def the_steering(given: typing.Sequence) -> Steering | None:
            rule, *rest = given
            placed, (edited, keys, *values) = rest[: len(where.parts)], rest[len(where.parts) :]
            concepts = {}
            for key, mode, value in zip(keys, values[::2], values[1::2], strict=False):
                value = asked.number("strength", value, -1e6, 1e6)
                concepts[key] = Clamp(value) if mode == SET and isinstance(key, int) else value
            if not concepts:
                return None
            painted = asked.painted(edited, *size) if where.takes_mask else None
            return Steering(tuple(concepts.items()), rule, mask=painted, **where.read(placed))

        def seen_view(sampling: Sampling | None, latent: int | None, token: int | None = None) -> Update:
            """Tokens, list and heatmaps of what was drawn."""
            if sampling is None:
                return {}
            fired = live.fires(sampling)
            listed = show.firing_list(fired, fired.strongest(LISTED, token), known, latent)
            made: Update = {firing: listed}
            if live.sees_text:
                made[tokens] = show.token_row(fired, latent, token)
            if live.in_denoiser and latent is not None:
                if live.sees_text:
                    made[maps] = show.timeline(fired, latent)
                elif fired.grid:
                    made[maps] = show.heatmaps(fired, latent, live.plain(sampling))
            return made

        @told
        def on_draw(progress=gr.Progress(), request: gr.Request = None, latent=None, *given):  # noqa: B008
            sampling = the_sampling(given[: len(sampled)])
            steering = the_steering(given[len(sampled) :])
            session = request.session_hash
            stopping.discard(session)

            def on_step(what: str) -> Callable[[int, int], None]:
                def step(done: int, of: int) -> None:
                    if session in stopping:
                        raise InputError("stopped: the picture was not finished")
                    progress((done, of), desc=what, unit="steps")

                return step

            if not live.in_denoiser:  # what fires is known before there is a picture
                yield {seen: sampling} | seen_view(sampling, latent)
            before = live.plain(sampling, on_step("plain"))
            yield {plain: before, seen: sampling} | (seen_view(sampling, latent) if live.in_denoiser else {})
            if steering is None:
                hint = "Nothing is steered: choose a latent" + (
                    "." if live.in_denoiser else ", or add a concept."
                )
                yield {changed: before, status: _hint(hint), code: snippet(live, sampling)}
                return
            after = live.steered(sampling, steering, on_step("steered"))
            named = ", ".join(
                f"{_named(key, known)} {show.signed(value)}" for key, value in steering.concepts
            )
            yield {
                changed: after,
                status: _hint(f"{named}: {show.difference(before, after)}"),
                code: snippet(live, sampling, steering),
            }

        def on_change(progress=gr.Progress(), request: gr.Request = None, wanted=True, drawn=None, *given):  # noqa: B008
            if wanted and drawn is not None:
                yield from on_draw(progress, request, *given)
            else:
                yield {
                    status: _hint("Press Draw to see it." if drawn is None else "Changed since: press Draw.")
                }

        def on_stop(request: gr.Request) -> None:
            stopping.add(request.session_hash)

        def opened(latent: int, sampling: Sampling | None, token: int | None = None) -> Iterator[Update]:
            if not 0 <= latent < live.n_latents:
                raise InputError(f"latent {latent} is none of this SAE's, which has 0-{live.n_latents - 1}")
            yield {
                chosen: latent,
                card: show.card(latent, known, (report / "latent.html").is_file()),
                take: gr.Button(f"Steer latent {latent}", visible=True),
            } | seen_view(sampling, latent, token)

        @told
        def on_select(sampling, latent, event: gr.EventData) -> Iterator[Update]:
            kind, number = event._data["kind"], int(event._data["number"])
            if kind == "latent":
                yield from opened(number, sampling)
            elif kind == "token" and sampling is not None:
                yield seen_view(sampling, latent, number)

        @told
        def on_search(typed, latent) -> Iterator[Update]:
            found = _search(live, known, asked.text("search", typed))
            hint = ("" if found else _hint(f"No latent for {typed}.")) + (
                known.missing and _hint(known.missing)
            )
            yield {results: show.found_list(found, known, latent) + hint}

        def placed(keys: list[Key], values: list[tuple[str, float]]) -> Update:
            """The rows of what is steered, and what may be varied."""
            update: Update = {steered: keys}
            for i, row in enumerate(rows):
                key, (mode, value) = (keys[i], values[i]) if i < len(keys) else (None, (SCALE, -1.0))
                update |= row.show(key, mode, value, known)
            names = [(_named(key, known), i) for i, key in enumerate(keys)]
            return update | {vary: gr.Dropdown(names, value=len(names) - 1 if names else None)}

        def with_one_more(key: Key, keys: list[Key], values: list) -> Update:
            held = list(zip(values[::2], values[1::2], strict=True))[: len(keys)]
            if key in keys:
                raise InputError(f"{_named(key, known)} is steered already; change its strength")
            if len(keys) == MOST:
                raise InputError(f"{MOST} are steered already; remove one first")
            return placed([*keys, key], [*held, (SCALE, -1.0)])

        @told
        def on_take(latent, keys, *values) -> Iterator[Update]:
            yield with_one_more(latent, keys, list(values))

        @told
        def on_add(typed, keys, *values) -> Iterator[Update]:
            live.check_prompt(text := asked.concept(typed), "concept")
            yield with_one_more(text, keys, list(values)) | {concept: ""}

        def on_remove(i: int) -> Callable[..., Update]:
            def remove(keys, *values) -> Update:
                held = list(zip(values[::2], values[1::2], strict=True))[: len(keys)]
                return placed(keys[:i] + keys[i + 1 :], held[:i] + held[i + 1 :])

            return remove

        def on_mode(i: int) -> Callable[..., Update]:
            def mode(keys, mode) -> Update:
                value = (known.highest(keys[i]) or 10.0) if mode == SET else -1.0
                return rows[i].show(keys[i], mode, value, known)

            return mode

        @told
        def on_compare(wanted, at, *given) -> Iterator[Update]:
            sampling = the_sampling(list(given[: len(sampled)]))
            steering = the_steering(list(given[len(sampled) :]))
            if steering is None or at is None:
                raise InputError(
                    "nothing is steered: choose a latent, or add a concept, to compare strengths of"
                )
            try:
                numbers = parse_strengths(wanted or "")
            except InputError as error:
                raise InputError(str(error).replace("--strength has", "strengths has")) from error
            if len(numbers) > STRIP:
                raise InputError(f"strengths has {len(numbers)} numbers; {STRIP} are compared at most")
            key, now = steering.concepts[at]
            pictures, shown = [], []
            for number in numbers:
                strength: Strength = Clamp(number) if isinstance(now, Clamp) else number
                concepts = tuple((k, strength if k == key else v) for k, v in steering.concepts)
                one = Steering(**{**vars(steering), "concepts": concepts})
                pictures.append(live.steered(sampling, one))
                shown.append(strength)
                yield {strip: show.strip(pictures, shown, now)}

        def on_strip(wanted, at, event: gr.EventData) -> Update:
            numbers = parse_strengths(wanted or "")
            number = int(event._data["number"])
            if at is None or number >= len(numbers):
                return {said: ""}
            return {rows[at].slider: numbers[number]}

        def on_example(event: gr.EventData) -> Update:
            return {prompt: examples[int(event._data["number"])]}

        @told
        def on_load(request: gr.Request) -> Iterator[Update]:
            if (typed := request.query_params.get(LATENT_OF_URL)) is not None:
                if not typed.isdecimal() or len(typed) > 9:
                    raise InputError(f"latent {typed[:40]} in the address is no number of a latent")
                yield from opened(int(typed), None)

        # Events. What samples has one turn, and of changes that come meanwhile only the last is drawn.

        turn = {
            "concurrency_limit": 1,
            "concurrency_id": "pipeline",
            "show_progress": "minimal",
            "show_progress_on": status,
        }
        reads = {
            "concurrency_limit": 1,
            "concurrency_id": "read",
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        quick = {"show_progress": "hidden"}
        drawn = [said, seen, plain, changed, status, code, *view]
        full = [chosen, *sampled, *asks]
        gr.on(
            [draw.click, prompt.submit, seed.submit, steps.submit, guidance.submit],
            on_draw,
            full,
            drawn,
            trigger_mode="always_last",
            **turn,
        )
        changes = [part.input for row in rows for part in (row.slider,)] + [rule.input, *where.changes]
        changes += [mask.change] if where.takes_mask else []
        redraw = {"fn": on_change, "inputs": [at_once, seen, *full], "outputs": drawn, **turn}
        gr.on(changes, trigger_mode="always_last", **redraw)
        stop.click(on_stop, None, None, queue=False, **quick)

        every = [chosen, card, take, said, *view]
        for part in (tokens, firing, results, card):
            part.select(on_select, [seen, chosen], every, **reads)
        page.load(on_load, None, every, **reads)
        gr.on([query.submit, find.click], on_search, [query, chosen], [said, results], **reads)

        values = [part for row in rows for part in (row.mode, row.slider)]
        of_rows = [steered, vary, *(part for row in rows for part in row.parts)]
        take.click(on_take, [chosen, steered, *values], [said, *of_rows], **quick).then(**redraw)
        gr.on(
            [add.click, concept.submit],
            on_add,
            [concept, steered, *values],
            [said, concept, *of_rows],
            **quick,
        ).then(**redraw)
        for i, row in enumerate(rows):
            row.remove.click(on_remove(i), [steered, *values], of_rows, **quick).then(**redraw)
            row.mode.input(on_mode(i), [steered, row.mode], row.parts, **quick).then(**redraw)
        compare.click(on_compare, [strengths, vary, *sampled, *asks], [said, strip], **turn)
        strip.select(on_strip, [strengths, vary], [said, *(row.slider for row in rows)], **quick).then(
            **redraw
        )
        samples.select(on_example, None, prompt, **quick).then(on_draw, full, drawn, **turn)
        if where.takes_mask:
            plain.change(lambda edited, picture: _canvas(picture, edited), [mask, plain], mask, **quick)
    page.queue(max_size=32, api_open=False)
    return page


class _Row:
    """One line of what is steered: a latent or a concept, and its strength."""

    def __init__(self, i: int):
        with gr.Row(visible=False, elem_classes="steer-row", elem_id=f"row-{i}") as self.line:
            self.slider = gr.Slider(
                -REACH, REACH, -1.0, step=0.05, scale=6, min_width=220, elem_id=f"strength-{i}"
            )
            self.mode = gr.Radio(
                [SCALE, SET], value=SCALE, label="How", scale=2, min_width=170, elem_id=f"mode-{i}"
            )
            self.remove = gr.Button("Remove", scale=1, min_width=90, size="md", elem_id=f"remove-{i}")
        self.parts = [self.line, self.slider, self.mode]

    def show(self, key: Key | None, mode: str, value: float, known: Known) -> Update:
        if key is None:
            return {self.line: gr.Row(visible=False), self.slider: -1.0, self.mode: SCALE}
        name = _named(key, known)
        label, low, high = f"{name}: strength, below 0 removes", -REACH, REACH
        if mode == SET:
            label, low, high = f"{name}: value it is set to", 0.0, 2 * (known.highest(key) or 10.0)
        return {
            self.line: gr.Row(visible=True),
            self.slider: gr.Slider(
                low,
                max(high, value),
                value,
                step=0.05 if mode == SCALE else round(high / 200, 6),
                label=label,
            ),
            self.mode: gr.Radio(value=mode, visible=isinstance(key, int)),
        }


class _Where:
    """The fields of what steering is limited to; those that have no meaning at the site are not shown."""

    def __init__(self, live: Live):
        text = not live.in_denoiser
        self.takes_mask = live.in_denoiser and not live.sees_text
        positions = ["all", "no_padding", "content"] if text else ["all"]
        negative = AS_RULE if live.config.steer.negative_branch or not text else NO
        with gr.Row():
            self.positions = gr.Dropdown(
                positions,
                value="all",
                label="Tokens",
                info="or numbers, as 2,5-7",
                allow_custom_value=True,
                visible=live.sees_text,
                elem_id="positions",
                min_width=130,
            )
            self.negative = gr.Dropdown(
                [AS_RULE, YES, NO],
                value=negative,
                label="Negative prompt too",
                info="the other way",
                elem_id="negative",
                min_width=130,
            )
            self.pooled = gr.Dropdown(
                [AS_RULE, YES, NO],
                value=YES if live.config.steer.pooled and live.takes_pooled else AS_RULE,
                label="Pooled vector too",
                info="of CLIP, beside the tokens",
                visible=live.takes_pooled,
                elem_id="pooled",
                min_width=130,
            )
        with gr.Row(visible=live.in_denoiser):
            number = {"precision": 0, "min_width": 100}
            self.first = gr.Number(
                1000, label="From timestep", info="1000 is noise", elem_id="first", **number
            )
            self.last = gr.Number(0, label="to timestep", info="0 is the picture", elem_id="last", **number)
            self.start = gr.Number(
                1.0, label="Strength times", info="at the start", elem_id="ramp-start", min_width=100
            )
            self.end = gr.Number(1.0, label="to times", info="at the end", elem_id="ramp-end", min_width=100)
        self.parts = [self.positions, self.negative, self.pooled, self.first, self.last, self.start, self.end]
        self.changes = [self.positions.input, self.negative.input, self.pooled.input]
        self.changes += [number.submit for number in (self.first, self.last, self.start, self.end)]

    @staticmethod
    def read(given: list) -> dict[str, typing.Any]:
        """The values of ``parts`` as fields of Steering. Raises InputError."""
        positions, negative, pooled, first, last, start, end = given
        chosen = {AS_RULE: None, YES: True, NO: False}
        steps = asked.number("from timestep", first, 0, 1000), asked.number("to timestep", last, 0, 1000)
        if steps[0] < steps[1]:
            raise InputError(
                f"timesteps go from {steps[0]:g} to {steps[1]:g}; they fall, as from 1000 to 600"
            )
        ramp = asked.number("strength times", start, -100, 100), asked.number("to times", end, -100, 100)
        return {
            "positions": asked.positions(positions),
            "steps": None if steps == (1000, 0) else steps,
            "ramp": ramp,
            "pooled": chosen[pooled],
            "negative_branch": chosen[negative],
        }


def _hint(text: str) -> str:
    return f'<p class="hint">{show.escaped(text)}</p>'


def _named(key: Key, known: Known) -> str:
    if isinstance(key, str):
        return f"“{key}”"
    name = known.name(key)
    return f"latent {key}, {name[:40]}" if name else f"latent {key}"


def _search(live: Live, known: Known, typed: str) -> list[tuple[int, str, float | None]]:
    """Latents by number, by what is known of them, and by firing on the text where the site sees one."""
    found: dict[int, tuple[str, float | None]] = {}
    if typed.isdecimal() and len(typed) < 10 and int(typed) < live.n_latents:
        found[int(typed)] = "by its number", None
    for latent, why in known.search(typed, LISTED):
        found.setdefault(latent, (why, None))
    if not live.in_denoiser:
        for row in live.latents_for(typed, LISTED // 2):
            token = show.words.word(row["token"])
            why, _ = found.get(row["latent"], (f"fires at {token}", None))
            found[row["latent"]] = why, row["value"]
    return [(latent, why, value) for latent, (why, value) in found.items()]


def _canvas(
    picture: np.ndarray | None, edited: dict[str, typing.Any] | None = None
) -> dict[str, typing.Any] | None:
    """A picture to paint on, with what was painted before; small ones are enlarged."""
    if picture is None:
        return None
    times = max(1, round(384 / max(picture.shape[:2])))
    background = picture[..., :3].repeat(times, 0).repeat(times, 1)
    return {"background": background, "layers": (edited or {}).get("layers") or [], "composite": None}


def _head(live: Live, report: pathlib.Path) -> str:
    sae = live.steerer.sae
    facts = f"{live.config.model.id} · {live.site} · {sae.n_latents:,} latents" + (
        f", k {sae.k}" if sae.k else ""
    )
    link = '<a href="report/index.html">Report</a>' if (report / "index.html").is_file() else ""
    return f"{link}<h1>Explorer</h1><p>{show.escaped(facts)}</p>"


def _examples(examples: list[str]) -> str:
    chips = "".join(
        f'<button type="button" data-example="{i}">{show.escaped(text)}</button>'
        for i, text in enumerate(examples)
    )
    return f'<p class="chips">{chips}</p>'
