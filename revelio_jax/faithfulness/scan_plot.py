"""Draw a scan as bars: one row per hook point, one panel per figure and per label."""

import typing
from collections.abc import Mapping

from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SELECTIONS = ("all positions", "all tokens", "words", "other tokens")


def draw(record: Mapping[str, typing.Any], titles: Mapping[str, str]) -> "Figure":
    """Return a figure of the contents of scan.json; ``titles`` has the title of each figure of ablation."""
    import matplotlib
    from matplotlib.figure import Figure

    scans: dict[str, typing.Any] = record["sites"]
    shown = [figure for figure in titles if any(figure in each["ablation"] for each in scans.values())]
    panels = [*shown, *record["pairs"]]
    colors = matplotlib.color_sequences["petroff10"]
    with matplotlib.rc_context(STYLE):
        size = (2.3 + 1.9 * len(panels), 1.4 + 0.24 * max(len(scans), 4))
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, panel in zip(row, panels, strict=True):
            ax.grid(visible=False, axis="y")
            if panel in titles:
                _draw_ablation(ax, scans, panel, colors[0])
                ax.set_title(titles[panel].replace(", ", ",\n"))
            else:
                _draw_interchange(ax, record, panel, colors)
                ax.set_title(f"{panel}: images with\nthe other label")
        row[0].set_yticks(range(len(scans)), list(scans))
        row[0].set_ylim(len(scans) - 0.4, -0.6)
        if record["pairs"]:
            _legend(figure, row[-1])
    return figure


def _draw_ablation(ax: "Axes", scans: Mapping[str, typing.Any], name: str, color: typing.Any) -> None:
    for y, each in enumerate(scans.values()):
        value = each["ablation"].get(name)
        if value:
            _bar(ax, y, value, 0.7, color)


def _draw_interchange(ax: "Axes", record: Mapping[str, typing.Any], column: str, colors: typing.Any) -> None:
    """Draw one bar per selection of positions. Dotted lines: the share without interchange, and of the other prompt."""
    for y, each in enumerate(record["sites"].values()):
        moved = each["interchange"].get(column, {})
        height = 0.8 / max(len(moved), 1)
        for i, (selection, value) in enumerate(moved.items()):
            offset = (i - (len(moved) - 1) / 2) * height
            _bar(ax, y + offset, value["second"], height, colors[1 + SELECTIONS.index(selection)], selection)
    for which in ("first", "second"):
        ax.axvline(record["plain_pairs"][column][which]["second"]["mean"], color="0.4", linestyle=":", linewidth=0.9)
    ax.set_xlim(0, 1)


def _bar(ax: "Axes", y: float, value: Mapping[str, float], height: float, color: typing.Any, label: str = "") -> None:
    error = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
    style = {"elinewidth": 0.8, "ecolor": "0.3"}
    ax.barh(y, value["mean"], height=height, xerr=error, color=color, label=label or None, error_kw=style)


def _legend(figure: "Figure", ax: "Axes") -> None:
    handles: dict[str, typing.Any] = {}
    for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
        handles.setdefault(label, handle)
    ordered = {name: handles[name] for name in SELECTIONS if name in handles}
    figure.legend(ordered.values(), ordered.keys(), loc="outside lower center", ncols=4, title="interchanged")
