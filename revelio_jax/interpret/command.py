"""Record what each latent of an SAE fires on, in one pass over the store and in bounded memory.

    revelio interpret --config mini_sd
    revelio interpret --config mini_sd --config.interpret.sae=neurons

The command writes runs/<name>/latents: how often and how strongly each latent fires, its top samples with positions and
maps, weaker samples, label purity, and neighbors; how well localized its maps are; and, with
config.interpret.embedder, its monosemanticity. Then it writes the report, runs/<name>/report/index.html.

With config.interpret.sae=neurons each coordinate of the activations is a latent, and the folders are
runs/<name>/neurons and runs/<name>/neurons_report. With config.interpret.sae=random the latents are those of a random
dictionary of the same size and k, in runs/<name>/random and runs/<name>/random_report. Existing results of the same
store, SAE and fields are reused.
"""

from collections.abc import Sequence

from revelio_jax import run_folders
from revelio_jax.cli import parse
from revelio_jax.errors import memory_advice, require
from revelio_jax.interpret.latents.interpretation import interpret
from revelio_jax.interpret.latents.results import REUSED, Results

FLAGS = {"again": (False, "recompute the results even if they exist for the same store, SAE and fields")}


@memory_advice("lower config.interpret.batch_size")
def main(argv: Sequence[str]) -> None:
    """Run ``revelio interpret`` with the arguments ``argv``."""
    config, flags = parse(["revelio_jax.interpret", *argv], __doc__, **FLAGS)
    config = run_folders.with_local_run(config, "export/*", *REUSED)
    results, is_new = interpret(config, flags["again"])
    if not is_new:
        folder = run_folders.location(results.folder)
        print(f"{folder} already has the results of this store, SAE and fields; --again recomputes them")
    print(summary_lines(results))
    run_folders.push(results.folder.parent)
    print(f"results: {run_folders.location(results.folder)}", flush=True)
    require("PIL", "extract", "the report")
    from revelio_jax.interpret import report  # needs Pillow, checked above

    page = report.write(config, results) / "index.html"
    run_folders.push(results.folder.parent)
    print(f"report: {run_folders.location(page)}")


def summary_lines(results: Results) -> str:
    """Return a few lines of text: rows read, dead latents, L0, and the purity of each label."""
    summary, rows = results.summary, results.latents["rows"].to_numpy()
    lines = [
        f"{summary['name']}, {summary['site']}: {summary['rows']:,} rows of {summary['samples']:,} samples in "
        f"{summary['seconds']:.1f} s, {summary['rows'] / summary['seconds']:,.0f} rows per second",
        f"{summary['latents']:,} latents, {(rows == 0).mean():.1%} never fire on these rows; "
        f"L0 {rows.sum() / summary['rows']:.1f}",
    ]
    for label, purity in summary["purity"].items():
        of_measure, chance = purity["measured"], purity["chance"]
        if not of_measure["purity"] or not chance:
            lines.append(f"{label}: no latent fires on enough samples with this label")
            continue
        measures = ", ".join(
            f"{name} {mean['mean']:.2f} ({mean['low']:.2f}-{mean['high']:.2f}; chance {chance[name]:.2f})"
            for name in ("purity", "entropy", "sigma")
            if (mean := of_measure[name])
        )
        lines.append(f"{label}, {purity['classes']} classes, {of_measure['purity']['latents']:,} latents: {measures}")
    for name, mean in summary["measures"].items():
        if not (measured := mean["measured"]):
            lines.append(f"{name}: no latent fires on enough samples")
            continue
        chance = "" if mean["chance"] is None else f"; chance {mean['chance']:.3f}"
        lines.append(
            f"{name}, {measured['latents']:,} latents: {{mean:.3f}} ({{low:.3f}}-{{high:.3f}}".format(**measured)
            + f"{chance})"
        )
    return "\n".join(lines)
