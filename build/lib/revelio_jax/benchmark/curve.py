"""What is removed and what is kept, over strengths: one figure."""

import typing

from revelio_jax.benchmark.measurement import FIGURES
from revelio_jax.plot import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "Prompts with the concept": ("concept", "kept"),
    "Other prompts": ("others_label", "others_kept"),
}


def draw(
    summaries: dict[float, dict[str, dict[str, float]]],
    title: str,
    suggestion: dict[str, typing.Any] | None = None,
) -> "Figure":
    """``summaries[strength][figure]`` are {mean, low, high}, shares of pictures with 95 % intervals.

    A suggested strength is marked, as is the removal that was wanted of it.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours = dict(zip(FIGURES, matplotlib.color_sequences["petroff10"], strict=False))
    strengths = sorted(summaries)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.4), dpi=200, layout="constrained")
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (name, figures) in zip(axes, PANELS.items(), strict=True):
            for field in figures:
                rows = [summaries[strength][field] for strength in strengths]
                mean, low, high = ([row[part] for row in rows] for part in ("mean", "low", "high"))
                ax.fill_between(strengths, low, high, color=colours[field], alpha=0.15, linewidth=0)
                ax.plot(
                    strengths,
                    mean,
                    ".-",
                    color=colours[field],
                    label=FIGURES[field].removeprefix("other prompts: "),
                )
            ax.set_title(name)
            ax.set_xlabel("strength")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axes[0].set_ylabel("share of pictures, 95 % intervals")
        axes[0].set_ylim(-0.02, 1.02)
        axes[0].yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
        if suggestion:
            _mark(axes, suggestion)
    return figure


def _mark(axes: typing.Any, suggestion: dict[str, typing.Any]) -> None:
    grey = {"color": "0.4", "linewidth": 0.8, "linestyle": "--", "zorder": 1}
    axes[0].axhline(1 - suggestion["wanted"], **grey)
    found = suggestion["strength"] is not None
    note = f"wanted: {suggestion['wanted']:.0%} removed; " + (
        f"suggested: {suggestion['strength']:g}" if found else "none does it"
    )
    axes[1].set_title(note, loc="right", fontsize=7, color="0.4")  # where there is room
    for ax in axes if found else ():
        ax.axvline(suggestion["strength"], **grey)
