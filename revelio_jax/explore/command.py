"""A run's latents in a page with the pipeline behind it: what fires on a prompt, and steered pictures.

    python -m revelio_jax.explore --config configs/mini_sd.py

Then open the address that it prints. The page is served to this machine alone, unless --host says another
address; whoever reaches that may use it, since nobody is asked for a password. It needs the run's export;
what python -m revelio_jax.interpret found is shown and searched where it is there, and so is the report.
"""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence

from revelio_jax.cli import parse
from revelio_jax.errors import require
from revelio_jax.steering.labels import read_labeled

FLAGS = {
    "host": ("127.0.0.1", "address to listen on; 0.0.0.0 is every one of this machine"),
    "port": (7860, "port to listen on; 0 takes one that is free"),
    "sae": ("", "SAE folder or hub id; empty is runs/<name>/export"),
}
EXAMPLES = 5


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.explore", *argv], __doc__, **FLAGS)
    require("gradio", "explore", "the explorer")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder goes too
    with tempfile.TemporaryDirectory(prefix="revelio_explore_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of the pictures that Gradio serves; read when it is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # some of it asks here, not the page
        from revelio_jax.explore import app, server
        from revelio_jax.explore.backend import load
        from revelio_jax.explore.catalog import know

        listener = server.listen(flags["host"], flags["port"])  # before the model is loaded
        live = load(config, flags["sae"])
        known = know(config, pathlib.Path(live.sae), live.n_latents)
        report = pathlib.Path(config.run or "runs", "report")
        page = app.build(live, known, report, _examples(config.steer.prompts))
        application = server.application(page, report, flags["host"])
        shown = f"[{flags['host']}]" if ":" in flags["host"] else flags["host"]
        if not server.is_loopback(flags["host"]):
            print(
                f"warning: --host is {flags['host']}: whoever reaches this machine may use the page",
                file=sys.stderr,
            )
        print(f"explorer: http://{shown}:{listener.getsockname()[1]}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.server(application).run(sockets=[listener])


def _examples(prompts: str) -> list[str]:
    """A few prompts of the labelled ones, from all over the file."""
    if not prompts:
        return []
    texts = list(dict.fromkeys(row["prompt"] for row in read_labeled(prompts) if all(row.values())))
    return texts[:: max(1, len(texts) // EXAMPLES)][:EXAMPLES]
