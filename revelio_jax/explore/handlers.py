"""What happens when fields of the page are used.

Every handler yields the fields that it changes. What a person got wrong, and what a pipeline fails at, is
one line in the page; nothing else of the page is lost, and the next one may do.
"""

import functools
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator, Sequence

import gradio as gr

from revelio_jax.errors import InputError
from revelio_jax.explore import fields, requests, views
from revelio_jax.explore.backend import Backend
from revelio_jax.explore.catalog import Catalog, marks
from revelio_jax.explore.fields import MOST, SET, Fields, Key, Update, hint
from revelio_jax.explore.requests import SamplingRequest, SteeringRequest
from revelio_jax.explore.snippet import snippet
from revelio_jax.interpret.token_text import word
from revelio_jax.steering.strengths import Clamp, Strength, parse_strengths

LISTED = 40  # latents of a list
STRIP = 15  # pictures of a strip
OF_URL = "latent"  # /?latent=17 opens that one


def told(handler: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
    """A handler that says in the page what went wrong."""

    @functools.wraps(handler)  # Gradio reads the names and kinds of its arguments
    def run(self: "Handlers", *given: typing.Any) -> Iterator[Update]:
        said = self.fields.said
        try:
            yield {said: ""}
            yield from handler(self, *given)
        except InputError as error:
            yield {said: views.message(str(error))}
        except Exception as error:  # of a pipeline, whatever it is
            logging.getLogger(__name__).exception("the pipeline failed")
            text = " ".join(str(error).split())[:300]
            yield {said: views.message(f"the pipeline failed: {type(error).__name__}: {text}")}

    return run


class Handlers:
    """Those of one page. Fields come as Gradio gives them, in the order of ``asks``, ``held`` and so on."""

    def __init__(self, live: Backend, known: Catalog, report: pathlib.Path, examples: list[str], page: Fields):
        self.live, self.known, self.report = live, known, report
        self.examples, self.fields = examples, page
        self._stopping: set[str] = set()  # sessions whose picture is to end
        steer = live.config.steer
        self._size = steer.height, steer.width
        self.sampled = [page.prompt, page.seed, page.steps, page.guidance]
        self.held = [part for row in page.rows for part in (row.mode, row.slider)]
        self.asks = [*self.sampled, page.mask, page.rule, *page.where.parts, page.steered, *self.held]
        self.view = [page.tokens, page.firing, page.maps]
        self.made = [page.said, page.seen, page.plain, page.changed, page.status, page.code, page.mask]
        self.made += self.view
        self.opens = [page.said, page.chosen, page.opened, page.name, page.card, *self.view]
        self.of_rows = [page.said, page.steered, page.vary, page.concept]
        self.of_rows += [part for row in page.rows for part in (row.line, row.slider, row.mode)]

    # Pictures

    @told
    def draw(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request = None,
        drawn: SamplingRequest | None = None,
        latent: int | None = None,
        *given: typing.Any,
    ) -> Iterator[Update]:
        page, live = self.fields, self.live
        sampling, steering = self._asked(given)
        if not live.in_denoiser:  # what fires is known before there is a picture
            yield {page.seen: sampling} | self._view(sampling, latent)
        before = live.plain(sampling, self._on_step(request, progress, "plain"))
        made: Update = {page.plain: views.picture("Plain", before, sampling.prompt), page.seen: sampling}
        if live.in_denoiser:
            made |= self._view(sampling, latent)
        if live.in_denoiser and not live.sees_text and sampling != drawn:
            made[page.mask] = gr.HTML(picture=views.png(before))
        yield made
        if steering is None:
            yield {
                page.changed: views.no_picture("Steered"),
                page.status: hint(
                    f"Nothing is steered: open a latent{'' if live.in_denoiser else ', or add a concept'}."
                ),
                page.code: snippet(live, sampling),
            }
            return
        after = live.steered(sampling, steering, self._on_step(request, progress, "steered"))
        named = ", ".join(f"{self._named(key)} {views.signed(value)}" for key, value in steering.concepts)
        yield {
            page.changed: views.picture("Steered", after, f"{sampling.prompt}, with {named}"),
            page.status: hint(f"{named}: {views.difference(before, after)}"),
            page.code: snippet(live, sampling, steering),
        }

    def change(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request = None,
        at_once: bool = True,
        drawn: SamplingRequest | None = None,
        *given: typing.Any,
    ) -> Iterator[Update]:
        """Draw again, where that is wanted and there is a picture."""
        if at_once and drawn is not None:
            yield from self.draw(progress, request, drawn, *given)
        else:
            said = "Press Draw to see it." if drawn is None else "Changed since: press Draw."
            yield {self.fields.status: hint(said)}

    def follow(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request = None,
        said: str = "",
        *given: typing.Any,
    ) -> Iterator[Update]:
        """As :meth:`change`, after another handler that had nothing to complain of."""
        if said:
            yield self._nothing()
        else:
            yield from self.change(progress, request, *given)

    def stop(self, request: gr.Request) -> None:
        self._stopping.add(request.session_hash)

    @told
    def compare(
        self,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
        request: gr.Request = None,
        wanted: str = "",
        at: int | None = None,
        *given: typing.Any,
    ) -> Iterator[Update]:
        """The picture over strengths of one of what is steered, beside each other."""
        sampling, steering = self._asked(given)
        if steering is None or at is None:
            raise InputError("nothing is steered: open a latent, or add a concept, to compare its strengths")
        numbers = _strengths(wanted)
        key, now = steering.concepts[at]
        pictures, shown = [], []
        on_step = self._on_step(request, progress, "compare")
        for number in numbers:
            strength: Strength = Clamp(number) if isinstance(now, Clamp) else number
            pictures.append(self.live.steered(sampling, steering.with_strength(key, strength), on_step))
            shown.append(strength)
            yield {self.fields.strip: views.strip(pictures, shown, now)}

    def place(self, wanted: str, at: int | None, event: gr.EventData) -> Update:
        """Take the strength of a picture of the strip."""
        try:
            return {self.fields.rows[at].slider: _strengths(wanted)[int(event._data["number"])]}
        except (InputError, IndexError, TypeError):  # the fields have changed since
            return {self.fields.said: views.message("the strengths have changed: press Compare")}

    # Latents

    @told
    def select(self, sampling: SamplingRequest | None, latent: int | None, event: gr.EventData) -> Iterator[Update]:
        kind, number = event._data["kind"], int(event._data["number"])
        if kind == "latent":
            yield self._opened(number, sampling)
        elif kind == "token" and sampling is not None:
            yield self._view(sampling, latent, number)

    def load(self, request: gr.Request) -> Iterator[Update]:
        """Open the latent of the address, where it has one."""
        typed = request.query_params.get(OF_URL)
        yield from [self._nothing()] if typed is None else self._load(typed)

    @told
    def _load(self, typed: str) -> Iterator[Update]:
        if not (typed.isdecimal() and len(typed) < 10):
            raise InputError(f"the address says {OF_URL}={typed[:40]}; it must be the number of a latent")
        yield self._opened(int(typed), None)

    @told
    def search(self, typed: str | None, latent: int | None) -> Iterator[Update]:
        """Latents by number, by what is known of them, and by firing where the site sees a text."""
        typed = requests.text("search", typed)
        found: dict[int, tuple[str, float | None]] = {}
        if there := typed.isdecimal() and len(typed) < 10 and int(typed) < self.live.n_latents:
            found[int(typed)] = "by its number", None
        for number, why in self.known.search(typed, LISTED):
            found.setdefault(number, (why, None))
        if not self.live.in_denoiser:
            for row in self.live.latents_for(typed, LISTED // 2):
                why, _ = found.get(row["latent"], (f"fires at {marks(word(row['token']))}", None))
                found[row["latent"]] = why, row["value"]
        listed = views.found_list([(n, why, value) for n, (why, value) in found.items()], self.known, latent)
        if not found:
            listed = hint(f"No latent for {typed}.")
        if typed.isdecimal() and not there:
            listed = hint(f"Latents are numbered from 0 to {self.live.n_latents - 1}.") + listed
        yield {self.fields.results: listed + (self.known.missing and hint(self.known.missing))}

    # What is steered

    @told
    def take(self, latent: int, keys: list[Key], *held: typing.Any) -> Iterator[Update]:
        yield self._with(latent, keys, held)

    @told
    def add(self, typed: str | None, keys: list[Key], *held: typing.Any) -> Iterator[Update]:
        text = requests.concept(typed)
        self.live.check_prompt(text, "concept")
        yield self._with(text, keys, held) | {self.fields.concept: ""}

    def remove(self, i: int, keys: list[Key], *held: typing.Any) -> Update:
        strengths = _strengths_of(keys, held)
        return self._rows(keys[:i] + keys[i + 1 :], strengths[:i] + strengths[i + 1 :])

    def mode(self, i: int, keys: list[Key], mode: str) -> Update:
        """Multiply a latent, or set it."""
        highest = self._highest(keys[i])
        strength: Strength = Clamp(highest) if mode == SET else -1.0
        return self.fields.rows[i].shown(keys[i], self._named(keys[i]), strength, highest)

    def example(self, event: gr.EventData) -> Update:
        return {self.fields.prompt: self.examples[int(event._data["number"])]}

    # Inside

    def _nothing(self) -> Update:
        """Gradio takes no empty dict."""
        return {self.fields.said: gr.skip()}

    def _asked(self, given: Sequence) -> tuple[SamplingRequest, SteeringRequest | None]:
        """What the fields ``asks`` say. Raises InputError."""
        sampled, (painted, rule, *rest) = given[: len(self.sampled)], given[len(self.sampled) :]
        sampling = requests.sampling(*sampled, self._size)
        count = len(self.fields.where.parts)
        where, (keys, *held) = rest[:count], rest[count:]
        if not keys:
            return sampling, None
        concepts = tuple(zip(keys, _strengths_of(keys, held), strict=True))
        mask = requests.painted(painted, *self._size)
        limits = self.fields.where.read(where)
        if limits["pooled"] and any(isinstance(key, int) for key in keys):
            limits["pooled"] = None  # a latent has no pooled vector
        return sampling, SteeringRequest(concepts, rule, mask=mask, **limits)

    def _on_step(self, request: gr.Request, progress: gr.Progress, what: str) -> Callable[[int, int], None]:
        session = request.session_hash
        self._stopping.discard(session)

        def on_step(done: int, of: int) -> None:
            if session in self._stopping:
                raise InputError("stopped: the picture was not finished")
            progress((done, of), desc=what, unit="steps")

        return on_step

    def _view(self, sampling: SamplingRequest | None, latent: int | None, token: int | None = None) -> Update:
        """Tokens, list and heatmaps of a prompt or picture, nothing of None."""
        if sampling is None:
            return {}
        page, fired = self.fields, self.live.fires(sampling)
        listed = fired.strongest(LISTED, token)
        made: Update = {page.firing: views.firing_list(fired, listed, self.known, latent)}
        if self.live.sees_text:
            made[page.tokens] = views.token_row(fired, latent, token)
        if self.live.in_denoiser and latent is not None:
            if self.live.sees_text:
                made[page.maps] = views.timeline(fired, latent)
            elif fired.grid:
                made[page.maps] = views.heatmaps(fired, latent, self.live.plain(sampling))
        return made

    def _opened(self, latent: int, sampling: SamplingRequest | None) -> Update:
        if not 0 <= latent < self.live.n_latents:
            raise InputError(f"latent {latent} is none of this SAE's, which has 0-{self.live.n_latents - 1}")
        page = self.fields
        return {
            page.chosen: latent,
            page.opened: gr.Row(visible=True),
            page.name: views.heading(latent, self.known, (self.report / "latent.html").is_file()),
            page.card: views.card(latent, self.known),
        } | self._view(sampling, latent)

    def _with(self, key: Key, keys: list[Key], held: Sequence) -> Update:
        """The rows with one more. Raises InputError."""
        if key in keys:
            raise InputError(f"{self._named(key)} is steered already; change its strength")
        if len(keys) == MOST:
            raise InputError(f"{MOST} are steered already; remove one first")
        return self._rows([*keys, key], [*_strengths_of(keys, held), -1.0])

    def _rows(self, keys: list[Key], strengths: list[Strength]) -> Update:
        page = self.fields
        names = [self._named(key) for key in keys]
        choices = [(name, i) for i, name in enumerate(names)]
        update: Update = {
            page.steered: keys,
            page.vary: gr.Dropdown(choices, value=len(keys) - 1 if keys else None),
        }
        for row, key, name, strength in zip(page.rows, keys, names, strengths, strict=False):
            update |= row.shown(key, name, strength, self._highest(key))
        for row in page.rows[len(keys) :]:
            update |= row.hidden()
        return update

    def _highest(self, key: Key) -> float:
        known = self.known.highest(key) if isinstance(key, int) else None
        return known or fields.CLAMPED

    def _named(self, key: Key) -> str:
        if isinstance(key, str):
            return f"“{key}”"
        name = self.known.name(key)
        return f"latent {key}, {name[:40]}" if name else f"latent {key}"


def _strengths(wanted: str) -> list[float]:
    """Raises InputError."""
    try:
        numbers = parse_strengths(wanted or "")
    except InputError as error:
        raise InputError(str(error).replace("--strength has", "strengths has")) from error
    if len(numbers) > STRIP:
        raise InputError(f"strengths has {len(numbers)} numbers; at most {STRIP} are compared")
    return numbers


def _strengths_of(keys: list[Key], held: Sequence) -> list[Strength]:
    """The strengths of what is steered, from modes and sliders. Raises InputError."""
    strengths: list[Strength] = []
    for key, mode, value in zip(keys, held[::2], held[1::2], strict=False):
        value = requests.number("strength", value, -1e6, 1e6)
        strengths.append(Clamp(value) if mode == SET and isinstance(key, int) else value)
    return strengths
