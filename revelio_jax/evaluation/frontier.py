"""Draw every measure of SAEs against their L0, with a line per architecture."""

import csv
import io
import typing
from collections.abc import Sequence

from revelio_jax.evaluation.measures import HIGHER, LOWER, Measure, MeasuredSae
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
MARKERS = "os^Dv*"
ARROWS = {LOWER: "\N{DOWNWARDS ARROW}", HIGHER: "\N{UPWARDS ARROW}"}


def lines(saes: Sequence[MeasuredSae]) -> dict[str, list[MeasuredSae]]:
    """Return the SAEs of each line in ascending L0, by the line's label.

    A line has one architecture, hook point and dictionary size. Its label leaves out what is the same in all lines.
    """
    has_sites, has_sizes = (len({getattr(sae, name) for sae in saes}) > 1 for name in ("site", "latents"))
    found: dict[str, list[MeasuredSae]] = {}
    for sae in sorted(saes, key=lambda sae: (sae.architecture, sae.site, sae.latents, sae.l0)):
        label = [sae.architecture, *([sae.site] * has_sites), *([f"{sae.latents:,} latents"] * has_sizes)]
        found.setdefault(", ".join(label), []).append(sae)
    return found


def measures(saes: Sequence[MeasuredSae]) -> list[Measure]:
    """Return the measures that at least one SAE has, in the order of their files."""
    return list(dict.fromkeys(measure for sae in saes for measure in sae.measures))


def draw(saes: Sequence[MeasuredSae]) -> "Figure":
    """Draw a panel per measure against L0. Measures with an interval have error bars."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn = measures(saes)
    rows = -(-len(drawn) // COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 0.7 + 2.3 * rows), dpi=200, layout="constrained")
        figure.suptitle(
            f"{ARROWS[LOWER]} {LOWER}, {ARROWS[HIGHER]} {HIGHER}", fontsize=8, x=0.01, ha="left", color="0.4"
        )
        axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for ax, measure in zip(axes, drawn, strict=False):
            for number, (label, own) in enumerate(lines(saes).items()):
                _draw_line(ax, measure, [sae for sae in own if measure in sae.measures], label, number)
            ax.set_title(f"{measure.title} {ARROWS.get(measure.better, '')}".strip())
            ax.set_xlabel("L0")
            _set_scale(ax, measure, saes)
        for ax in axes[len(drawn) :]:
            ax.set_axis_off()
        handles: dict[str, typing.Any] = {}
        for ax in axes:
            handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


def csv_text(saes: Sequence[MeasuredSae]) -> str:
    """Return one line for each SAE and measure."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "architecture", "site", "latents", "l0", "measure", "mean", "low", "high"])
    for own in lines(saes).values():
        for sae in own:
            for measure, value in sae.measures.items():
                writer.writerow([sae.run, sae.architecture, sae.site, sae.latents, sae.l0, measure.title, *value])
    return file.getvalue()


def _draw_line(ax: "Axes", measure: Measure, saes: Sequence[MeasuredSae], label: str, number: int) -> None:
    import matplotlib

    if not saes:
        return
    colors = matplotlib.color_sequences["petroff10"]
    color, marker = colors[number % len(colors)], MARKERS[number % len(MARKERS)]
    values = [sae.measures[measure] for sae in saes]
    l0, mean = [sae.l0 for sae in saes], [value.mean for value in values]
    ax.plot(l0, mean, "-", color=color, marker=marker, markersize=4, label=label)
    bounds = [(at, value.low, value.high) for at, value in zip(l0, values, strict=True) if value.low is not None]
    if bounds:
        at, low, high = zip(*bounds, strict=True)
        ax.vlines(at, low, high, color=color, linewidth=0.8)


def _set_scale(ax: "Axes", measure: Measure, saes: Sequence[MeasuredSae]) -> None:
    """Draw L0 on a logarithmic scale if it varies by more than 4, and the FVU if it varies by more than 10."""
    from matplotlib.ticker import LogLocator, NullFormatter

    def spans(values: Sequence[float], factor: float) -> bool:
        return min(values) > 0 and max(values) > factor * min(values)

    own = [sae for sae in saes if measure in sae.measures]
    l0, mean = [sae.l0 for sae in own], [sae.measures[measure].mean for sae in own]
    for axis, is_log in ((ax.xaxis, spans(l0, 4)), (ax.yaxis, measure.title == "FVU" and spans(mean, 10))):
        if is_log:
            (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 4, 7)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    if measure.title == "dead latents":
        ax.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
