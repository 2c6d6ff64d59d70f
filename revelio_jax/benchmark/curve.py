"""Draw removal and retention against the strength."""

import typing

from revelio_jax.benchmark.measurement import FIGURES, Interval, Suggestion, figure_names
from revelio_jax.plot_style import STYLE

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "Prompts with the concept": ("concept", "kept"),
    "Other prompts": ("others_label", "others_kept", "others_absent"),
}


def draw(
    summaries: dict[float, dict[str, Interval]],
    title: str,
    suggestion: Suggestion | None = None,
) -> "Figure":
    """Draw the figure of ``summaries[strength][figure]``, shares of images with 95 % intervals.

    The strength and the target of ``suggestion``, from :func:`revelio_jax.benchmark.sweep.suggest`, are marked.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colors = dict(zip(FIGURES, matplotlib.color_sequences["petroff10"], strict=False))
    strengths = sorted(summaries)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.4), dpi=200, layout="constrained")
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        axes = figure.subplots(1, 2, sharey=True)
        names = figure_names(next(iter(summaries.values())))
        for ax, (name, fields) in zip(axes, PANELS.items(), strict=True):
            for field in (field for field in fields if field in names):
                rows = [summaries[strength][field] for strength in strengths]
                mean, low, high = ([row[bound] for row in rows] for bound in ("mean", "low", "high"))
                ax.fill_between(strengths, low, high, color=colors[field], alpha=0.15, linewidth=0)
                label = names[field].removeprefix("other prompts: ")
                ax.plot(strengths, mean, ".-", color=colors[field], label=label)
            ax.set_title(name)
            ax.set_xlabel("strength")
            if ax.lines:
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            else:
                ax.set_title(f"{name}: none")
        axes[0].set_ylabel("share of images, 95 % intervals")
        axes[0].set_ylim(-0.02, 1.02)
        axes[0].yaxis.set_major_formatter(lambda y, _: f"{100 * y:g} %")
        if suggestion:
            _mark(axes, suggestion)
    return figure


def _mark(axes: typing.Any, suggestion: Suggestion) -> None:
    line = {"color": "0.4", "linewidth": 0.8, "linestyle": "--", "zorder": 1}
    axes[0].axhline(1 - suggestion["wanted"], **line)
    strength = suggestion["strength"]
    result = "no strength reaches the target" if strength is None else f"suggested: {strength:g}"
    note = f"target: {suggestion['wanted']:.0%} removed; {result}"
    axes[1].set_title(note, loc="right", fontsize=7, color="0.4")  # the left panel has no room for the note
    if strength is not None:
        for ax in axes:
            ax.axvline(strength, **line)
