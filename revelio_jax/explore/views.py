"""Write the HTML parts of the page: tokens, lists of latents, heatmaps. All text is escaped."""

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image

from revelio_jax.explore.activations import ActiveLatents, LatentSummary
from revelio_jax.explore.catalog import Catalog, TableRow, name_marks
from revelio_jax.interpret import token_text
from revelio_jax.pipelines.tokens import CONTENT, PADDING
from revelio_jax.steering.strengths import Clamp, Strength

SMALL = 256  # pixels; images with a smaller longer side are enlarged without smoothing
HEAT = (245, 138, 30)  # RGB of heatmaps; the same as --heat-rgb in style.css


def escape(text: object) -> str:
    """Return text with HTML characters escaped."""
    return html.escape(str(text), quote=True)


def hint(text: str) -> str:
    """Return a line of advice as HTML."""
    return f'<p class="hint">{escape(text)}</p>'


def error(text: str) -> str:
    """Return an error as one line of HTML."""
    return f'<p class="message" role="alert">{escape(text)}</p>'


def amount(value: float) -> str:
    """Return a value of a latent with three significant digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(strength: Strength) -> str:
    """Return a strength as text: -1, +0.5, set to 12."""
    return f"set to {strength.value:g}" if isinstance(strength, Clamp) else f"{strength:+g}"


def _pressed(pressed: bool) -> str:
    return f'aria-pressed="{str(pressed).lower()}"'


def png(pixels: np.ndarray) -> str:
    """Return pixels uint8 [height, width, channels] as the data URL of a PNG."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image(name: str, pixels: np.ndarray, description: str) -> str:
    """Return an image with its name and a link that saves it; small images are enlarged without smoothing."""
    url, crisp = png(pixels), " crisp" if max(pixels.shape[:2]) < SMALL else ""
    return (
        f'<figure class="image{crisp}"><figcaption>{name} '
        f'<a download="{name.lower()}.png" href="{url}">Save</a></figcaption>'
        f'<img alt="{name}: {escape(description)}" src="{url}"></figure>'
    )


def no_image(name: str) -> str:
    """Return the frame of an image that does not exist yet."""
    return f'<figure class="image"><figcaption>{name}</figcaption><div class="none"></div></figure>'


def token_texts(active: ActiveLatents) -> list[str]:
    """Return the text of each token before the padding; BOS and EOS are called start and end."""
    if active.tokens is None or active.kinds is None:
        return []
    count = int((active.kinds != PADDING).sum())
    pieces = token_text.pieces(active.tokens[:count])
    ends = {0: "start", count - 1: "end"}
    return [
        piece if kind == CONTENT else ends.get(i, piece)
        for i, (piece, kind) in enumerate(zip(pieces, active.kinds, strict=False))
    ]


def token_row(active: ActiveLatents, latent: int | None, token: int | None) -> str:
    """Return the prompt's tokens as buttons, shaded by the largest value of a latent over the steps."""
    values = np.zeros(active.shape[1]) if latent is None else active.map(latent).max(0)
    texts, kinds = token_texts(active), () if active.kinds is None else active.kinds
    peak = max(float(values.max()), 1e-12)
    chips = []
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=False)):
        name = text.strip() or "space"
        classes = "token" + ("" if kind == CONTENT else " mark") + (" heat" if values[i] > 0 else "")
        title = f"{name}, position {i}" + (f": {amount(values[i])}" if values[i] > 0 else "")
        small = f"<small>{amount(values[i])}</small>" if values[i] > 0 else ""
        chips.append(
            f'<button type="button" class="{classes}" data-token="{i}" {_pressed(i == token)} '
            f'style="--heat:{values[i] / peak:.3f}" title="{escape(title)}" aria-label="{escape(title)}">'
            f"{escape(name)}{small}</button>"
        )
    if padding := len(kinds) - len(texts):
        largest = float(values[len(texts) :].max())
        small = f"<small>{amount(largest)}</small>" if largest > 0 else ""
        heat = " heat" if largest > 0 else ""
        chips.append(
            f'<span class="token mark{heat}" style="--heat:{largest / peak:.3f}" '
            f'title="largest value on the padding tokens">{padding} padding{small}</span>'
        )
    if latent is None:
        advice = "Click a latent to see where it fires. Click a token to see which latents fire on it."
    elif not values.any():
        advice = f"Latent {latent} does not fire on this prompt."
    else:
        advice = f"Shading: values of latent {latent}, up to {amount(values.max())}."
    return f'<div class="tokens">{"".join(chips)}</div>{hint(advice)}'


def place(active: ActiveLatents, row: LatentSummary) -> str:
    """Return where a latent fires, as text: the token, or the share of the image and the timestep."""
    step = f"t = {active.timesteps[row['step']]}" if active.timesteps else ""
    if active.tokens:
        texts = token_texts(active)
        token = texts[row["position"]].strip() if row["position"] < len(texts) else "padding"
        return f"{token} · {step}" if step else token
    if active.grid:
        return f"{row['share']:.0%} of image · {step}"
    return step


def active_list(active: ActiveLatents, rows: list[LatentSummary], catalog: Catalog, open_latent: int | None) -> str:
    """Return latents that fire, strongest first, as buttons that open them."""
    if not rows:
        return hint("No latent fires here.")
    peak = max(row["value"] for row in rows)
    items = [(row["latent"], place(active, row), row["value"], peak) for row in rows]
    return _list(items, catalog, open_latent)


def search_list(results: list[tuple[int, str, float | None]], catalog: Catalog, open_latent: int | None) -> str:
    """Return results of a search, (latent, reason, value), as buttons that open the latents."""
    peak = max((value for _, _, value in results if value), default=1.0)
    return _list([(latent, reason, value, peak) for latent, reason, value in results], catalog, open_latent)


def _list(items: Sequence[tuple[int, str, float | None, float]], catalog: Catalog, open_latent: int | None) -> str:
    entries = []
    for latent, text, value, peak in items:
        number = "" if value is None else amount(value)
        share = 0.0 if value is None else value / peak
        entries.append(
            f'<li><button type="button" class="latent" data-latent="{latent}" '
            f'{_pressed(latent == open_latent)} style="--part:{share:.3f}">'
            f'<b>{latent}</b><span class="name">{escape(catalog.name(latent))}</span>'
            f'<span class="where">{escape(text)}</span><span class="value">{number}</span></button></li>'
        )
    return f'<ul class="latents">{"".join(entries)}</ul>'


def heading(latent: int, catalog: Catalog, has_report: bool) -> str:
    """Return a latent's number and name, with a link to its page if the report exists."""
    name = f" <span>{escape(text)}</span>" if (text := catalog.name(latent)) else ""
    link = f'<a href="report/latent.html#{latent}" target="_blank">Open in the report</a>' if has_report else ""
    return f"<h2>Latent {latent}{name}</h2>{link}"


def card(latent: int, catalog: Catalog) -> str:
    """Return the card of a latent: its words, tags, numbers, samples and neighbors."""
    row = catalog.row(latent)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{text}</dd>" for name, text in _facts(latent, catalog, row))
    parts = [f"<dl>{facts}</dl>"]
    if samples := [sample for sample in catalog.samples(latent, 5) if sample["text"]]:
        parts.append("<h4>Strongest samples</h4><ul class='samples'>")
        parts += [f"<li>{escape(s['text'])} <small>{amount(s['value'])}</small></li>" for s in samples]
        parts.append("</ul>")
    for title, *arrays in (
        ("Fires together with", "coactive", "coactive_score"),
        ("Similar decoder rows", "nearest", "nearest_cosine"),
    ):
        if neighbors := catalog.neighbors(latent, *arrays)[:6]:
            parts.append(f"<h4>{title}</h4><p class='chips'>")
            parts += [
                f'<button type="button" data-latent="{i}" title="{score:.2f}">{i} {escape(catalog.name(i))}</button>'
                for i, score in neighbors
            ]
            parts.append("</p>")
    if not row:
        parts.append(hint(catalog.missing))
    return f'<section class="card" aria-label="Latent {latent}">{"".join(parts)}</section>'


def _facts(latent: int, catalog: Catalog, row: TableRow) -> list[tuple[str, str]]:
    """Return the words, tags and numbers of a latent as pairs (name, HTML)."""
    if not row:
        return []
    facts: list[tuple[str, str]] = []
    if row.get("words"):
        facts.append(("strongest tokens", escape(name_marks(row["words"]))))
    if tags := catalog.tags.get(latent):
        texts = [
            escape(tag["label"]) + (f" <small>{escape(tag['granularity'])}</small>" if tag.get("granularity") else "")
            for tag in tags[:6]
        ]
        facts.append(("tags", ", ".join(texts)))
    facts.append(("fires on", f"{row['frequency']:.3%} of positions, {row['samples']:,} samples"))
    if catalog.highest(latent):
        facts.append(("values", f"mean {amount(row['mean'])}, maximum {amount(row['max'])}"))
    for label in catalog.labels:
        purity, majority = row.get(f"{label}.purity"), row.get(f"{label}.majority")
        if purity is not None and majority and math.isfinite(purity):
            facts.append((label, f"{escape(majority)} in {purity:.0%} of the strongest samples"))
    return facts


def heatmaps(active: ActiveLatents, latent: int, pixels: np.ndarray) -> str:
    """Return heatmaps of a latent over the image: first the largest value over all steps, then each step."""
    values = active.map(latent)
    peak = float(values.max())
    if peak <= 0:
        return hint(f"Latent {latent} does not fire in this image.")
    height, width = active.grid or (1, active.shape[1])
    style = f"--image:url({png(pixels)});--ratio:{pixels.shape[1] / pixels.shape[0]:.4f}"

    def heatmap(cells: np.ndarray, caption: str, large: bool = False) -> str:
        rgba = np.zeros((height, width, 4), np.uint8)
        rgba[..., :3] = HEAT
        rgba[..., 3] = np.round(225 * cells.reshape(height, width) / peak)
        kind = ' class="large"' if large else ""
        return (
            f'<figure{kind}><div class="heatmap"><img alt="{escape(caption)}" src="{png(rgba)}"></div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    maps = [heatmap(values.max(0), f"all steps, up to {amount(peak)}", large=True)]
    maps += [heatmap(cells, f"t = {t}") for t, cells in zip(active.timesteps, values, strict=True)]
    crisp = " crisp" if max(pixels.shape[:2]) < SMALL else ""
    return f'<div class="heatmaps{crisp}" style="{style}">{"".join(maps)}</div>'


def timeline(active: ActiveLatents, latent: int) -> str:
    """Return the values of a latent on the tokens of the denoiser's text stream, one table row per step."""
    values = active.map(latent)
    texts = token_texts(active)
    peak = max(float(values.max()), 1e-12)
    head = "".join(f"<th scope='col'>{escape(text.strip() or 'space')}</th>" for text in texts)
    rows = []
    for t, row in zip(active.timesteps, values, strict=True):
        cells = "".join(
            f'<td style="--heat:{value / peak:.3f}" title="{amount(value)}"></td>' for value in row[: len(texts)]
        )
        rows.append(f"<tr><th scope='row'>t = {t}</th>{cells}</tr>")
    return f'<div class="timeline"><table><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def difference(plain: np.ndarray, steered: np.ndarray) -> str:
    """Return a sentence that says how much two images differ."""
    change = np.abs(plain.astype(np.int16) - steered)
    if not change.any():
        return "identical to the plain image, bit for bit"
    share = (change.max(-1) > 0).mean()
    return f"{share:.0%} of pixels differ from the plain image, by {change.mean():.1f} of 255 on average"


def strip(images: list[np.ndarray], strengths: list[Strength], current: Strength | None) -> str:
    """Return images side by side, as buttons that select their strength."""
    figures = []
    crisp = " crisp" if max(images[0].shape[:2]) < SMALL else ""
    for i, (pixels, strength) in enumerate(zip(images, strengths, strict=True)):
        name = "0" if strength == 0 else signed(strength)
        figures.append(
            f'<button type="button" data-strength="{i}" {_pressed(strength == current)}>'
            f'<img alt="strength {escape(name)}" src="{png(pixels)}"><span>{escape(name)}</span></button>'
        )
    return f'<div class="strip{crisp}">{"".join(figures)}</div>'
