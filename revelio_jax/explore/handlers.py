"""The handlers of the page's events.

Every handler yields or returns new values of the fields that it changes. Handlers with :func:`reports_errors` show
input errors and failures as one line; the rest of the page does not change. The terminal gets the same line for a
failure of the machine, for example too little memory, and a traceback for any other failure of the pipeline.
"""

import functools
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from revelio_jax.errors import InputError, failure_line, memory_advice, single_line
from revelio_jax.explore import requests, views
from revelio_jax.explore.backend import Backend
from revelio_jax.explore.catalog import Catalog, name_marks
from revelio_jax.explore.fields import DEFAULT_CLAMP, MAX_CONCEPTS, SET, Fields, Key, Update
from revelio_jax.explore.requests import SamplingRequest, SteeringRequest
from revelio_jax.explore.snippet import snippet
from revelio_jax.interpret.token_text import word
from revelio_jax.steering.strengths import Clamp, Strength, parse_strengths

LIST_LENGTH = 40  # latents in a list
MAX_STRIP = 15  # images of a strip
MEMORY_ADVICE = "restart the explorer with smaller config.steer.height and width, or with config.model.offload=model"
URL_PARAMETER = "latent"  # the address /?latent=17 opens latent 17


def reports_errors(handler: Callable[..., Iterator[Update] | Update]) -> Callable[..., Iterator[Update]]:
    """Wrap a handler so that the page shows its errors as one line. The event's outputs must have ``message``."""

    @functools.wraps(handler)  # Gradio reads the names and kinds of the arguments
    def run(self: "Handlers", *values: typing.Any) -> Iterator[Update]:
        message = self.fields.message
        try:
            yield {message: ""}
            with memory_advice(MEMORY_ADVICE):
                update = handler(self, *values)
                yield from [update] if isinstance(update, dict) else update
        except InputError as error:
            yield {message: views.error(str(error))}
        except Exception as error:  # pipelines raise exceptions of many classes
            logger = logging.getLogger(__name__)
            if line := failure_line(error):
                logger.error("error: %s", line)
                yield {message: views.error(line)}
                return
            logger.exception("the pipeline failed")
            text = single_line(str(error))[:300]
            yield {message: views.error(f"the pipeline failed: {type(error).__name__}: {text}")}

    return run


class Handlers:
    """The handlers of one page. Gradio passes the values of fields in the order of the lists ``..._fields``."""

    def __init__(self, backend: Backend, catalog: Catalog, report: pathlib.Path, examples: list[str], fields: Fields):
        self.backend, self.catalog, self.report = backend, catalog, report
        self.examples, self.fields = examples, fields
        self._stopping: set[str | None] = set()  # sessions whose image must stop
        steer = backend.config.steer
        self._size = steer.height, steer.width
        self.sampling_fields = [fields.prompt, fields.seed, fields.steps, fields.guidance]
        self.strength_fields = [field for row in fields.rows for field in (row.mode, row.slider)]
        self.request_fields = [*self.sampling_fields, fields.mask, fields.rule, *fields.region.parts]
        self.request_fields += [fields.concepts, *self.strength_fields]
        self.active_fields = [fields.tokens, fields.active, fields.maps]
        self.image_fields = [fields.message, fields.drawn, fields.plain, fields.steered, fields.status, fields.code]
        self.image_fields += [fields.mask, *self.active_fields]
        self.latent_fields = [fields.message, fields.latent, fields.latent_line, fields.name, fields.card]
        self.latent_fields += self.active_fields
        self.row_fields = [fields.message, fields.concepts, fields.varied, fields.concept]
        self.row_fields += [field for row in fields.rows for field in (row.line, row.slider, row.mode)]

    # Images

    @reports_errors
    def draw(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        session: gr.Request | None = None,
        drawn: SamplingRequest | None = None,
        latent: int | None = None,
        *values: typing.Any,
    ) -> Iterator[Update]:
        """Draw the plain and the steered image, and list the latents that fire."""
        fields, backend = self.fields, self.backend
        request, steering = self._requests(values)
        if not backend.in_denoiser:  # latents of a text encoder do not depend on the image
            yield {fields.drawn: request} | self._show_active(request, latent)
        plain = backend.plain_image(request, self._on_step(session, progress, "plain image"))
        update: Update = {fields.plain: views.image("Plain", plain, request.prompt), fields.drawn: request}
        if backend.in_denoiser:
            update |= self._show_active(request, latent)
        if backend.in_denoiser and not backend.sees_text and request != drawn:
            update[fields.mask] = gr.HTML(image=views.png(plain))
        yield update
        if steering is None:
            advice = "Open a latent and steer it." if backend.in_denoiser else "Steer a latent or add a concept."
            yield {
                fields.steered: views.no_image("Steered"),
                fields.status: views.hint(f"Nothing is steered. {advice}"),
                fields.code: snippet(backend, request),
            }
            return
        steered = backend.steered_image(request, steering, self._on_step(session, progress, "steered image"))
        names = ", ".join(f"{self._name(key)} {views.signed(value)}" for key, value in steering.concepts)
        yield {
            fields.steered: views.image("Steered", steered, f"{request.prompt}, with {names}"),
            fields.status: views.hint(f"{names}: {views.difference(plain, steered)}"),
            fields.code: snippet(backend, request, steering),
        }

    def redraw(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        session: gr.Request | None = None,
        auto_draw: bool = True,
        drawn: SamplingRequest | None = None,
        *values: typing.Any,
    ) -> Iterator[Update]:
        """Draw again after a change, if this is enabled and an image has been drawn."""
        if auto_draw and drawn is not None:
            yield from self.draw(progress, session, drawn, *values)
        else:
            text = "Press Draw." if drawn is None else "Settings have changed: press Draw to update the image."
            yield {self.fields.status: views.hint(text)}

    def redraw_unless_failed(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        session: gr.Request | None = None,
        message: str = "",
        *values: typing.Any,
    ) -> Iterator[Update]:
        """Draw again if the previous handler showed no error."""
        if message:
            yield self._no_change()
        else:
            yield from self.redraw(progress, session, *values)

    def stop(self, session: gr.Request) -> None:
        """Stop the image of this session after its current step."""
        self._stopping.add(session.session_hash)

    @reports_errors
    def compare(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        session: gr.Request | None = None,
        strengths: str = "",
        varied: int | None = None,
        *values: typing.Any,
    ) -> Iterator[Update]:
        """Draw the image at several strengths of one latent or concept."""
        request, steering = self._requests(values)
        if steering is None or varied is None:
            raise InputError("nothing is steered; steer a latent or add a concept first")
        key, current = steering.concepts[varied]
        images, shown = [], []
        on_step = self._on_step(session, progress, "comparison")
        for number in _parse_strengths(strengths):
            strength: Strength = Clamp(number) if isinstance(current, Clamp) else number
            images.append(self.backend.steered_image(request, steering.with_strength(key, strength), on_step))
            shown.append(strength)
            yield {self.fields.strip: views.strip(images, shown, current)}

    def use_strength(self, strengths: str, varied: int | None, event: gr.EventData) -> Update:
        """Move the slider to the strength of the image that was clicked in the strip."""
        try:
            if varied is None:
                raise IndexError
            return {self.fields.rows[varied].slider: _parse_strengths(strengths)[int(event._data["number"])]}
        except (InputError, IndexError, TypeError):  # the fields have changed since
            return {self.fields.message: views.error("the strengths have changed; press Compare again")}

    # Latents

    @reports_errors
    def select(self, drawn: SamplingRequest | None, latent: int | None, event: gr.EventData) -> Iterator[Update]:
        """Open the latent that was clicked, or list the latents on the token that was clicked."""
        kind, number = event._data["kind"], int(event._data["number"])
        if kind == "latent":
            yield self._open(number, drawn)
        elif kind == "token" and drawn is not None:
            yield self._show_active(drawn, latent, number)

    def open_address(self, session: gr.Request) -> Iterator[Update]:
        """Open the latent that the page's address names, if any."""
        value = session.query_params.get(URL_PARAMETER)
        yield from [self._no_change()] if value is None else self._open_number(value)

    @reports_errors
    def _open_number(self, value: str) -> Iterator[Update]:
        if not (value.isdecimal() and len(value) < 10):
            raise InputError(f"the address has {URL_PARAMETER}={value[:40]}; it must be the number of a latent")
        yield self._open(int(value), None)

    @reports_errors
    def search(self, query: str | None, latent: int | None) -> Iterator[Update]:
        """List latents by number, by their words and, at a text encoder, by firing on the query."""
        query = requests.text("search", query)
        matches: dict[int, tuple[str, float | None]] = {}
        is_number = query.isdecimal() and len(query) < 10
        if is_number and int(query) < self.backend.n_latents:
            matches[int(query)] = "number", None
        for number, reason in self.catalog.search(query, LIST_LENGTH):
            matches.setdefault(number, (reason, None))
        if not self.backend.in_denoiser:
            for row in self.backend.latents_for(query, LIST_LENGTH // 2):
                reason, _ = matches.get(row["latent"], (f"fires on {name_marks(word(row['token']))}", None))
                matches[row["latent"]] = reason, row["value"]
        results = [(number, reason, value) for number, (reason, value) in matches.items()]
        listing = views.hint(f"No latent matches {query}.")
        if results:
            listing = views.search_list(results, self.catalog, latent)
        if query.isdecimal() and not (is_number and int(query) < self.backend.n_latents):
            listing = views.hint(f"This SAE has latents 0 to {self.backend.n_latents - 1}.") + listing
        yield {self.fields.results: listing + (self.catalog.missing and views.hint(self.catalog.missing))}

    # Steered concepts

    @reports_errors
    def steer_latent(self, latent: int, keys: list[Key], *values: typing.Any) -> Iterator[Update]:
        """Add a row for the open latent."""
        yield self._add_row(latent, keys, values)

    @reports_errors
    def add_concept(self, value: str | None, keys: list[Key], *values: typing.Any) -> Iterator[Update]:
        """Add a row for a text."""
        text = requests.concept(value)
        self.backend.check_prompt(text, "concept")
        yield self._add_row(text, keys, values) | {self.fields.concept: ""}

    @reports_errors
    def remove(self, i: int, keys: list[Key], *values: typing.Any) -> Update:
        """Remove row ``i``."""
        strengths = _strengths_of(keys, values)
        return self._rows(keys[:i] + keys[i + 1 :], strengths[:i] + strengths[i + 1 :])

    @reports_errors
    def set_mode(self, i: int, keys: list[Key], mode: str) -> Update:
        """Switch row ``i`` between multiplying its latent and setting it to a value."""
        highest = self._highest(keys[i])
        strength: Strength = Clamp(highest) if mode == SET else -1.0
        return self.fields.rows[i].show(keys[i], self._name(keys[i]), strength, highest)

    def use_example(self, event: gr.EventData) -> Update:
        """Copy the example that was clicked to the prompt."""
        return {self.fields.prompt: self.examples[int(event._data["number"])]}

    # Helpers

    def _no_change(self) -> Update:
        """Return an update that changes nothing; Gradio does not accept an empty dict."""
        return {self.fields.message: gr.skip()}

    def _requests(self, values: Sequence) -> tuple[SamplingRequest, SteeringRequest | None]:
        """Return the requests in values of ``request_fields``; the second is None if nothing is steered."""
        count = len(self.sampling_fields)
        prompt, seed, steps, guidance = values[:count]
        request = requests.sampling(prompt, seed, steps, guidance, self._size)
        url, rule, *rest = values[count:]
        count = len(self.fields.region.parts)
        region, (keys, *strengths) = rest[:count], rest[count:]
        if not keys:
            return request, None
        concepts = tuple(zip(keys, _strengths_of(keys, strengths), strict=True))
        mask = requests.painted_mask(url, *self._size)
        limits = self.fields.region.read(region)
        if limits["pooled"] and any(isinstance(key, int) for key in keys):
            limits["pooled"] = None  # a latent has no pooled vector
        return request, SteeringRequest(concepts, rule, mask=mask, **limits)

    def _on_step(self, session: gr.Request | None, progress: gr.Progress, name: str) -> Callable[[int, int], None]:
        """Return a callback that shows progress, and raises InputError after the user pressed Stop."""
        user = session.session_hash if session else None
        self._stopping.discard(user)

        def on_step(done: int, steps: int) -> None:
            if user in self._stopping:
                raise InputError("stopped: the image is not finished")
            progress((done, steps), desc=name, unit="steps")

        return on_step

    def _show_active(self, request: SamplingRequest | None, latent: int | None, token: int | None = None) -> Update:
        """Return tokens, list and heatmaps of a request, {} if it is None."""
        if request is None:
            return {}
        fields, backend, active = self.fields, self.backend, self.backend.find_active(request)
        rows = active.strongest(LIST_LENGTH, token)
        update: Update = {fields.active: views.active_list(active, rows, self.catalog, latent)}
        if backend.sees_text:
            update[fields.tokens] = views.token_row(active, latent, token)
        if backend.in_denoiser and latent is not None:
            if backend.sees_text:
                update[fields.maps] = views.timeline(active, latent)
            elif active.grid:
                update[fields.maps] = views.heatmaps(active, latent, backend.plain_image(request))
        return update

    def _open(self, latent: int, request: SamplingRequest | None) -> Update:
        """Return the card of a latent and its values on a request. Raise InputError if the number is out of range."""
        last = self.backend.n_latents - 1
        if not 0 <= latent <= last:
            raise InputError(f"latent {latent} is out of range: this SAE has latents 0-{last}")
        fields = self.fields
        return {
            fields.latent: latent,
            fields.latent_line: gr.Row(visible=True),
            fields.name: views.heading(latent, self.catalog, (self.report / "latent.html").is_file()),
            fields.card: views.card(latent, self.catalog),
        } | self._show_active(request, latent)

    def _add_row(self, key: Key, keys: list[Key], values: Sequence) -> Update:
        """Return the rows with one more concept. Raise InputError if it has a row already or all rows are used."""
        if key in keys:
            raise InputError(f"{self._name(key)} is already steered; change its strength instead")
        if len(keys) == MAX_CONCEPTS:
            raise InputError(f"at most {MAX_CONCEPTS} latents and concepts can be steered together; remove one first")
        return self._rows([*keys, key], [*_strengths_of(keys, values), -1.0])

    def _rows(self, keys: list[Key], strengths: list[Strength]) -> Update:
        fields = self.fields
        names = [self._name(key) for key in keys]
        choices = [(name, i) for i, name in enumerate(names)]
        update: Update = {
            fields.concepts: keys,
            fields.varied: gr.Dropdown(choices, value=len(keys) - 1 if keys else None),
        }
        for row, key, name, strength in zip(fields.rows, keys, names, strengths, strict=False):
            update |= row.show(key, name, strength, self._highest(key))
        for row in fields.rows[len(keys) :]:
            update |= row.hide()
        return update

    def _highest(self, key: Key) -> float:
        highest = self.catalog.highest(key) if isinstance(key, int) else None
        return highest or DEFAULT_CLAMP

    def _name(self, key: Key) -> str:
        if isinstance(key, str):
            return f"“{key}”"
        name = self.catalog.name(key)
        return f"latent {key}, {name[:40]}" if name else f"latent {key}"


def _parse_strengths(text: str) -> list[float]:
    """Return the numbers of the field Strengths. Raise InputError if they are malformed or too many."""
    strengths = parse_strengths(text or "", "strengths")
    if len(strengths) > MAX_STRIP:
        raise InputError(f"strengths has {len(strengths)} numbers; it must have at most {MAX_STRIP}")
    return strengths


def _strengths_of(keys: list[Key], values: Sequence) -> list[Strength]:
    """Return the strengths of the rows from values of ``strength_fields``. Raise InputError if one is not allowed."""
    strengths: list[Strength] = []
    for key, mode, value in zip(keys, values[::2], values[1::2], strict=False):
        value = requests.number("strength", value, -1e6, 1e6)
        strengths.append(Clamp(value) if mode == SET and isinstance(key, int) else value)
    return strengths
