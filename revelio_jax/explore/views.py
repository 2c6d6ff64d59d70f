"""The parts of the page that are HTML: tokens, lists of latents, heatmaps. All that is shown is escaped."""

import base64
import html
import io
import math
import typing

import numpy as np
import PIL.Image

from revelio_jax.explore.activations import ActiveLatents
from revelio_jax.explore.catalog import Catalog, marks
from revelio_jax.interpret import token_text
from revelio_jax.pipelines.tokens import CONTENT, PADDING
from revelio_jax.steering.strengths import Clamp, Strength

SMALL = 256  # pixels of the larger side up to which a picture is enlarged crisply
HEAT = (245, 138, 30)  # of a heatmap over a picture; style.css has the same of tokens


def escaped(text: object) -> str:
    return html.escape(str(text), quote=True)


def message(text: str, kind: str = "error") -> str:
    """One line above the pictures; "" where there is nothing to say."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="said {kind}" role="{role}">{escaped(text)}</p>' if text else ""


def amount(value: float) -> str:
    """A value of a latent, short: three digits that count."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(strength: Strength) -> str:
    """A strength as a person reads it: -1, +0.5, set to 12."""
    return f"set to {strength.value:g}" if isinstance(strength, Clamp) else f"{strength:+g}"


def _pressed(chosen: bool) -> str:
    return f'aria-pressed="{str(chosen).lower()}"'


def png(pixels: np.ndarray) -> str:
    """Pixels uint8 [height, width, channels] as the address of a PNG."""
    written = io.BytesIO()
    PIL.Image.fromarray(pixels).save(written, "png")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def picture(name: str, pixels: np.ndarray, said: str) -> str:
    """A picture with its name and a link that saves it; small ones are enlarged without smoothing."""
    address, crisp = png(pixels), " crisp" if max(pixels.shape[:2]) < SMALL else ""
    return (
        f'<figure class="picture{crisp}"><figcaption>{name} '
        f'<a download="{name.lower()}.png" href="{address}">Save</a></figcaption>'
        f'<img alt="{name}: {escaped(said)}" src="{address}"></figure>'
    )


def no_picture(name: str) -> str:
    """The place of a picture that is still to come."""
    return f'<figure class="picture"><figcaption>{name}</figcaption><div class="none"></div></figure>'


def shown_tokens(fired: ActiveLatents) -> list[str]:
    """The text of each position up to padding; marks of start and end by those words."""
    count = int((fired.kinds != PADDING).sum())
    pieces = token_text.pieces(fired.tokens[:count])
    ends = {0: "start", count - 1: "end"}
    return [
        piece if kind == CONTENT else ends.get(i, piece)
        for i, (piece, kind) in enumerate(zip(pieces, fired.kinds, strict=False))
    ]


def token_row(fired: ActiveLatents, latent: int | None, token: int | None) -> str:
    """The prompt's tokens, shaded by a latent at its strongest step; each is a button for its latents."""
    values = np.zeros(fired.shape[1]) if latent is None else fired.map(latent).max(0)
    texts = shown_tokens(fired)
    peak = max(float(values.max()), 1e-12)
    chips = []
    for i, (text, kind) in enumerate(zip(texts, fired.kinds, strict=False)):
        name = text.strip() or "space"
        classes = "token" + ("" if kind == CONTENT else " mark") + (" heat" if values[i] > 0 else "")
        said = f"{name}, position {i}" + (f": {amount(values[i])}" if values[i] > 0 else "")
        small = f"<small>{amount(values[i])}</small>" if values[i] > 0 else ""
        chips.append(
            f'<button type="button" class="{classes}" data-token="{i}" {_pressed(i == token)} '
            f'style="--heat:{values[i] / peak:.3f}" title="{escaped(said)}" aria-label="{escaped(said)}">'
            f"{escaped(name)}{small}</button>"
        )
    if padding := len(fired.kinds) - len(texts):
        most = float(values[len(texts) :].max())
        small = f"<small>{amount(most)}</small>" if most > 0 else ""
        heat = " heat" if most > 0 else ""
        chips.append(
            f'<span class="token mark{heat}" style="--heat:{most / peak:.3f}" '
            f'title="the largest value on padding">{padding} padding{small}</span>'
        )
    if latent is None:
        hint = "Choose a latent to see where it fires, or a token to see what fires on it."
    elif not values.any():
        hint = f"Latent {latent} does not fire on this prompt."
    else:
        hint = f"Shaded by latent {latent}: the largest value is {amount(values.max())}."
    return f'<div class="tokens">{"".join(chips)}</div><p class="hint">{hint}</p>'


def where(fired: ActiveLatents, row: dict[str, typing.Any]) -> str:
    """In which token, or where in the picture, a row of :meth:`Fired.strongest` is."""
    step = f"t {fired.timesteps[row['step']]}" if fired.timesteps else ""
    if fired.tokens:
        texts = shown_tokens(fired)
        at = texts[row["position"]].strip() if row["position"] < len(texts) else "padding"
        return f"{at} · {step}" if step else at
    if fired.grid:
        return f"{row['share']:.0%} of it · {step}"
    return step


def firing_list(fired: ActiveLatents, rows: list[dict[str, typing.Any]], known: Catalog, chosen: int | None) -> str:
    """Latents that fire, strongest first; each is a button that opens it."""
    if not rows:
        return '<p class="hint">No latent fires here.</p>'
    peak = max(row["value"] for row in rows)
    return _list([(row["latent"], where(fired, row), row["value"], peak) for row in rows], known, chosen)


def found_list(found: list[tuple[int, str, float | None]], known: Catalog, chosen: int | None) -> str:
    """Latents that a search found, with why, and a value where it is one of firing."""
    peak = max((value for _, _, value in found if value), default=1.0)
    return _list([(latent, why, value, peak) for latent, why, value in found], known, chosen)


def _list(rows: list[tuple[int, str, float | None, float]], known: Catalog, chosen: int | None) -> str:
    items = []
    for latent, said, value, peak in rows:
        number = "" if value is None else amount(value)
        share = 0.0 if value is None else value / peak
        items.append(
            f'<li><button type="button" class="latent" data-latent="{latent}" '
            f'{_pressed(latent == chosen)} style="--part:{share:.3f}">'
            f'<b>{latent}</b><span class="name">{escaped(known.name(latent))}</span>'
            f'<span class="where">{escaped(said)}</span><span class="value">{number}</span></button></li>'
        )
    return f'<ul class="latents">{"".join(items)}</ul>'


def heading(latent: int, known: Catalog, report: bool) -> str:
    """A latent's number and name, with a link to its page where there is a report."""
    named = f" <span>{escaped(name)}</span>" if (name := known.name(latent)) else ""
    link = f'<a href="report/latent.html#{latent}" target="_blank">in the report</a>' if report else ""
    return f"<h2>Latent {latent}{named}</h2>{link}"


def card(latent: int, known: Catalog) -> str:
    """What is known of a latent."""
    row = known.row(latent)
    lines = []
    facts: list[tuple[str, str]] = []
    if row:
        if row.get("words"):
            facts.append(("strongest at", escaped(marks(row["words"]))))
        if tags := known.tags.get(latent):
            said = ", ".join(
                f"{escaped(tag['label'])}"
                + (f" <small>{escaped(tag['granularity'])}</small>" if tag.get("granularity") else "")
                for tag in tags[:6]
            )
            facts.append(("tags", said))
        facts.append(("fires on", f"{row['frequency']:.3%} of positions, {row['samples']:,} samples"))
        if known.highest(latent):
            facts.append(("values", f"{amount(row['mean'])} on average, {amount(row['max'])} at most"))
        for label in known.labels:
            purity, majority = row.get(f"{label}.purity"), row.get(f"{label}.majority")
            if purity is not None and majority and math.isfinite(purity):
                facts.append((label, f"{escaped(majority)}, in {purity:.0%} of the strongest"))
    lines.append("<dl>" + "".join(f"<dt>{escaped(k)}</dt><dd>{v}</dd>" for k, v in facts) + "</dl>")
    if samples := [sample for sample in known.samples(latent, 5) if sample["text"]]:
        lines.append("<h4>Strongest samples</h4><ul class='samples'>")
        lines += [f"<li>{escaped(s['text'])} <small>{amount(s['value'])}</small></li>" for s in samples]
        lines.append("</ul>")
    for title, *arrays in (
        ("Fires beside", "coactive", "coactive_score"),
        ("Decodes like", "nearest", "nearest_cosine"),
    ):
        if near := known.neighbours(latent, *arrays)[:6]:
            lines.append(f"<h4>{title}</h4><p class='chips'>")
            lines += [
                f'<button type="button" data-latent="{i}" title="{score:.2f}">{i} {escaped(known.name(i))}</button>'
                for i, score in near
            ]
            lines.append("</p>")
    if not row:
        lines.append(f'<p class="hint">{escaped(known.missing)}</p>')
    return f'<section class="card" aria-label="Latent {latent}">{"".join(lines)}</section>'


def heatmaps(fired: ActiveLatents, latent: int, picture: np.ndarray) -> str:
    """The picture with a latent over it: the largest value over all steps, then step by step."""
    values = fired.map(latent)
    peak = float(values.max())
    if peak <= 0:
        return f'<p class="hint">Latent {latent} does not fire in this picture.</p>'
    height, width = fired.grid
    style = f"--picture:url({png(picture)});--ratio:{picture.shape[1] / picture.shape[0]:.4f}"

    def over(cells: np.ndarray, said: str, large: bool = False) -> str:
        rgba = np.zeros((height, width, 4), np.uint8)
        rgba[..., :3] = HEAT
        rgba[..., 3] = np.round(225 * cells.reshape(height, width) / peak)
        kind = ' class="large"' if large else ""
        return (
            f'<figure{kind}><div class="heatmap"><img alt="{escaped(said)}" src="{png(rgba)}"></div>'
            f"<figcaption>{escaped(said)}</figcaption></figure>"
        )

    maps = [over(values.max(0), f"strongest, up to {amount(peak)}", large=True)]
    maps += [over(cells, f"t {t}") for t, cells in zip(fired.timesteps, values, strict=True)]
    crisp = " crisp" if max(picture.shape[:2]) < SMALL else ""
    return f'<div class="heatmaps{crisp}" style="{style}">{"".join(maps)}</div>'


def timeline(fired: ActiveLatents, latent: int) -> str:
    """Values of a latent on the tokens of a stream of text inside of the denoiser, step by step."""
    values = fired.map(latent)
    texts = shown_tokens(fired)
    peak = max(float(values.max()), 1e-12)
    head = "".join(f"<th scope='col'>{escaped(text.strip() or 'space')}</th>" for text in texts)
    rows = []
    for t, row in zip(fired.timesteps, values, strict=True):
        cells = "".join(
            f'<td style="--heat:{value / peak:.3f}" title="{amount(value)}"></td>' for value in row[: len(texts)]
        )
        rows.append(f"<tr><th scope='row'>t {t}</th>{cells}</tr>")
    return f'<div class="timeline"><table><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def difference(plain: np.ndarray, steered: np.ndarray) -> str:
    """How far apart two pictures are, in words."""
    apart = np.abs(plain.astype(np.int16) - steered)
    if not apart.any():
        return "the same as plain, bit for bit"
    share = (apart.max(-1) > 0).mean()
    return f"{share:.0%} of pixels differ from plain, by {apart.mean():.1f} of 255 on average"


def strip(pictures: list[np.ndarray], strengths: list[Strength], at: Strength | None) -> str:
    """Pictures beside each other, each a button that takes its strength."""
    figures = []
    crisp = " crisp" if max(pictures[0].shape[:2]) < SMALL else ""
    for i, (picture, strength) in enumerate(zip(pictures, strengths, strict=True)):
        name = "0" if strength == 0 else signed(strength)
        figures.append(
            f'<button type="button" data-place="{i}" {_pressed(strength == at)}>'
            f'<img alt="strength {escaped(name)}" src="{png(picture)}"><span>{escaped(name)}</span></button>'
        )
    return f'<div class="strip{crisp}">{"".join(figures)}</div>'
