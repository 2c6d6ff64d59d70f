"""Build the page: connect the events of its fields to handlers and queues."""

import functools
import pathlib
import typing

import gradio as gr

from revelio_jax.explore.backend import Backend
from revelio_jax.explore.catalog import Catalog
from revelio_jax.explore.fields import lay_out
from revelio_jax.explore.handlers import Handlers

MAX_WAITING = 32  # events in the queue, over all users of the page


def build(backend: Backend, catalog: Catalog, report: pathlib.Path, examples: list[str]) -> gr.Blocks:
    """Return the page. ``report`` is the folder of the report, which may not exist; ``examples`` are prompts."""
    title = f"{backend.site} of {backend.config.model.id}: explorer"
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(600, 3600)) as page:
        fields = lay_out(backend, report, examples)
        _connect(page, Handlers(backend, catalog, report, examples, fields))
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _connect(page: gr.Blocks, handlers: Handlers) -> None:
    fields = handlers.fields
    # One image is sampled at a time. Of the changes that arrive meanwhile, only the last one is drawn.
    one_image: dict[str, typing.Any] = {
        "concurrency_limit": 1,
        "concurrency_id": "images",
        "show_progress": "minimal",
        "show_progress_on": fields.status,
    }
    last_only: dict[str, typing.Any] = {"trigger_mode": "always_last"}
    lookup: dict[str, typing.Any] = last_only | {
        "concurrency_limit": 1,
        "concurrency_id": "lookups",
        "show_progress": "hidden",
    }
    quiet: dict[str, typing.Any] = {"show_progress": "hidden"}

    inputs, outputs = [fields.drawn, fields.latent, *handlers.request_fields], handlers.image_fields
    draw: dict[str, typing.Any] = {"fn": handlers.draw, "inputs": inputs, "outputs": outputs, **one_image}
    redraw: dict[str, typing.Any] = {
        "fn": handlers.redraw,
        "inputs": [fields.auto_draw, *inputs],
        "outputs": outputs,
        **one_image,
    }
    after_change: dict[str, typing.Any] = {
        "fn": handlers.redraw_unless_failed,
        "inputs": [fields.message, fields.auto_draw, *inputs],
        "outputs": outputs,
        **one_image,
    }
    typed = (fields.prompt, fields.seed, fields.steps, fields.guidance)
    gr.on([fields.draw.click, *(field.submit for field in typed)], **draw, **last_only)
    changed = (*(row.slider for row in fields.rows), fields.rule, fields.mask)
    gr.on([*(field.input for field in changed), *fields.region.changes], **redraw, **last_only)
    fields.stop.click(handlers.stop, None, None, queue=False, **quiet)
    fields.examples.select(handlers.use_example, None, fields.prompt, **quiet).then(**draw)

    shown = [fields.drawn, fields.latent]
    for part in (fields.tokens, fields.active, fields.results, fields.card):
        part.select(handlers.select, shown, handlers.latent_fields, **lookup)
    page.load(handlers.open_address, None, handlers.latent_fields, **lookup)
    found = [fields.message, fields.results]
    gr.on([fields.query.submit, fields.search.click], handlers.search, [fields.query, fields.latent], found, **lookup)

    steered = [fields.concepts, *handlers.strength_fields]
    rows = handlers.row_fields
    fields.steer.click(handlers.steer_latent, [fields.latent, *steered], rows, **quiet).then(**after_change)
    added = [fields.add.click, fields.concept.submit]
    gr.on(added, handlers.add_concept, [fields.concept, *steered], rows, **quiet).then(**after_change)
    for i, row in enumerate(fields.rows):
        remove = functools.partial(handlers.remove, i)
        row.remove.click(remove, steered, rows, **quiet).then(**redraw)
        set_mode = functools.partial(handlers.set_mode, i)
        mode_outputs = [fields.message, row.line, row.slider, row.mode]
        row.mode.input(set_mode, [fields.concepts, row.mode], mode_outputs, **quiet).then(**redraw)

    strip = [fields.strengths, fields.varied]
    compared = [fields.message, fields.strip]
    fields.compare.click(handlers.compare, [*strip, *handlers.request_fields], compared, **one_image)
    sliders = [fields.message, *(row.slider for row in fields.rows)]
    fields.strip.select(handlers.use_strength, strip, sliders, **quiet).then(**redraw)
