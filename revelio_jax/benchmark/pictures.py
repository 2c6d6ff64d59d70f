"""Write the page of pictures of a benchmark: the same prompts and seeds with each method, blurred unless asked."""

import base64
import html
import pathlib
import typing
from collections.abc import Sequence

from revelio_jax.benchmark.images import ImageFolder, Shot
from revelio_jax.benchmark.results import TaskResult, reported

STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 1.5rem }
h1 { font-size: 1.2rem } h2 { font-size: 1rem; margin-top: 2rem }
div.table { overflow-x: auto }
th { font-weight: 500; padding: .2rem .4rem; vertical-align: bottom; max-width: 9rem }
th[scope=row] { text-align: left; min-width: 12rem; max-width: 20rem }
img { width: 112px; height: auto; display: block; image-rendering: auto }
.small img { image-rendering: pixelated }
.blurred img { filter: blur(14px); cursor: pointer }
.blurred img.shown { filter: none }
"""
SCRIPT = """
document.addEventListener("click", event => event.target.closest("img")?.classList.toggle("shown"))
document.addEventListener("keydown", event => {
  if (event.key === "Enter" || event.key === " ") {
    const image = event.target.closest?.("img")
    if (image) { image.classList.toggle("shown"); event.preventDefault() }
  }
})
"""


def page(
    results: Sequence[tuple[TaskResult, Sequence[Shot]]], folder: pathlib.Path, title: str, blurred: bool = True
) -> str:
    """Return an HTML page without links to other files. ``results`` has the shots to show of each task.

    A blurred image is shown by a click, or by Enter on it.
    """
    tables = [_table(result, shots, folder, blurred) for result, shots in results]
    note = "<p>Images are blurred. Click an image to show it; click again to blur it.</p>" if blurred else ""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n{note}\n{''.join(tables)}"
        f"<script>{SCRIPT}</script>\n</html>\n"
    )


def _table(result: TaskResult, shots: Sequence[Shot], folder: pathlib.Path, blurred: bool) -> str:
    rows = reported(result)
    action = "added" if result["adding"] else "removed"
    headings = "".join(f'<th scope="col">{html.escape(row["method"])} {row["strength"] or ""}</th>' for row in rows)
    lines: list[str] = []
    for shot in shots:
        cells = "".join(
            f"<td>{_image(ImageFolder(folder, row['key']), shot, row['method'], blurred)}</td>" for row in rows
        )
        label = html.escape(shot.prompt.prompt[:200])
        lines.append(
            f'<tr><th scope="row">{label}<br><small>{shot.prompt.role}, seed {shot.total_seed}</small></th>{cells}</tr>'
        )
    size = " small" if shots and shots[0].prompt.width < 112 else ""
    return (
        f"<h2>{html.escape(result['concept'])}, {action}</h2>\n"
        f'<div class="table{" blurred" if blurred else ""}{size}"><table><tr><td></td>{headings}</tr>\n'
        + "\n".join(lines)
        + "\n</table></div>\n"
    )


def _image(images: ImageFolder, shot: Shot, method: str, blurred: bool) -> str:
    data: typing.Any = base64.b64encode((images.path / shot.file_name).read_bytes()).decode()
    focus = ' tabindex="0" role="button"' if blurred else ""
    return f'<img alt="{html.escape(method)}" src="data:image/png;base64,{data}"{focus}>'
