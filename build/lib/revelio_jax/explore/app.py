"""The page: which use of which field is answered by which handler, and in which turn."""

import functools
import pathlib

import gradio as gr

from revelio_jax.explore.backend import Backend
from revelio_jax.explore.catalog import Catalog
from revelio_jax.explore.fields import lay_out
from revelio_jax.explore.handlers import Handlers

WAITING = 32  # that may wait for their turn, over all who use the page


def build(live: Backend, known: Catalog, report: pathlib.Path, examples: list[str]) -> gr.Blocks:
    """The page of a pipeline; ``report`` is where its report is, once it is made, ``examples`` prompts."""
    title = f"{live.site} of {live.config.model.id}: explorer"
    with gr.Blocks(analytics_enabled=False, title=title, delete_cache=(600, 3600)) as page:
        fields = lay_out(live, report, examples)
        _wire(page, Handlers(live, known, report, examples, fields))
    return page.queue(max_size=WAITING, api_open=False)


def _wire(page: gr.Blocks, on: Handlers) -> None:
    fields = on.fields
    # Pictures are made one at a time; of changes that come meanwhile only the last is drawn.
    turn = {
        "concurrency_limit": 1,
        "concurrency_id": "pictures",
        "show_progress": "minimal",
        "show_progress_on": fields.status,
    }
    last = {"trigger_mode": "always_last"}
    reads = last | {"concurrency_limit": 1, "concurrency_id": "reads", "show_progress": "hidden"}
    quick = {"show_progress": "hidden"}

    asked = [fields.seen, fields.chosen, *on.asks]
    draw = {"fn": on.draw, "inputs": asked, "outputs": on.made, **turn}
    change = {"fn": on.change, "inputs": [fields.at_once, *asked], "outputs": on.made, **turn}
    follow = {"fn": on.follow, "inputs": [fields.said, fields.at_once, *asked], "outputs": on.made, **turn}
    typed = (fields.prompt, fields.seed, fields.steps, fields.guidance)
    gr.on([fields.draw.click, *(field.submit for field in typed)], **draw, **last)
    changed = (*(row.slider for row in fields.rows), fields.rule, fields.mask)
    gr.on([*(field.input for field in changed), *fields.where.changes], **change, **last)
    fields.stop.click(on.stop, None, None, queue=False, **quick)
    fields.examples.select(on.example, None, fields.prompt, **quick).then(**draw)

    opened = [fields.seen, fields.chosen]
    for listed in (fields.tokens, fields.firing, fields.results, fields.card):
        listed.select(on.select, opened, on.opens, **reads)
    page.load(on.load, None, on.opens, **reads)
    found = [fields.said, fields.results]
    gr.on([fields.query.submit, fields.find.click], on.search, [fields.query, fields.chosen], found, **reads)

    steered = [fields.steered, *on.held]
    fields.take.click(on.take, [fields.chosen, *steered], on.of_rows, **quick).then(**follow)
    added = [fields.add.click, fields.concept.submit]
    gr.on(added, on.add, [fields.concept, *steered], on.of_rows, **quick).then(**follow)
    for i, row in enumerate(fields.rows):
        removed = functools.partial(on.remove, i)
        row.remove.click(removed, steered, on.of_rows, **quick).then(**change)
        how = functools.partial(on.mode, i)
        row.mode.input(how, [fields.steered, row.mode], [row.line, row.slider, row.mode], **quick).then(**change)

    strip = [fields.strengths, fields.vary]
    fields.compare.click(on.compare, [*strip, *on.asks], [fields.said, fields.strip], **turn)
    placed = [fields.said, *(row.slider for row in fields.rows)]
    fields.strip.select(on.place, strip, placed, **quick).then(**change)
