"""Serve a page for exploring the latents of a run: see which latents fire on a prompt, and steer images.

    revelio explore --config mini_sd

Open the address that it prints. By default only this machine can open the page. With another --host, every machine that
can reach that address can use the page without a password.

Behind a proxy or in a frame, name its host with --allow_host and the path of the page with --root_path. With
``ssh -L 7860:localhost:7860 MACHINE``, the page of another machine needs neither.

The run needs an export. The page shows and searches the results of revelio interpret if they exist, and links to the
report if it exists.
"""

import contextlib
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence

from revelio_jax.cli import parse
from revelio_jax.errors import memory_advice, require
from revelio_jax.steering.labels import read_labeled

FLAGS = {
    "host": ("127.0.0.1", "address to listen on; 0.0.0.0 listens on every address of this machine"),
    "port": (7860, "port to listen on, 1 to 65535; 0 chooses a free port"),
    "allow_host": (
        (),
        "other host name under which the page may be opened, or whose pages may show it in a frame; *.NAME allows all "
        "hosts of NAME; may be repeated",
    ),
    "root_path": (None, "path of the page at a proxy, for example /user/me/proxy/7860, or its whole address"),
    "sae": (None, "SAE folder or hub id; None: the export of the run"),
}
EXAMPLES = 5


@memory_advice("set config.model.offload=model or config.model.dtype=bfloat16")
def main(argv: Sequence[str]) -> None:
    """Run ``revelio explore`` with the arguments ``argv``."""
    config, flags = parse(["revelio_jax.explore", *argv], __doc__, **FLAGS)
    require("gradio", "explore", "the explorer")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave the with block, so that it deletes the folder
    with tempfile.TemporaryDirectory(prefix="revelio_explore_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # for images that Gradio serves; it reads this when it is imported
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # some parts of Gradio ignore the page's argument
        from revelio_jax.explore import app, hosts, server
        from revelio_jax.explore.backend import load
        from revelio_jax.explore.catalog import load_catalog

        host, root = flags["host"], hosts.check_root(flags["root_path"])
        hosts.check_names(flags["allow_host"])
        listener = server.listen(host, flags["port"])  # first, to fail before the model is loaded
        backend = load(config, flags["sae"])
        catalog = load_catalog(config, pathlib.Path(backend.sae), backend.n_latents)
        report = pathlib.Path(config.run or "runs", "report")
        page = app.build(backend, catalog, report, _examples(config.steer.prompts))
        application = server.application(page, report, host, flags["allow_host"], root)
        if not server.is_loopback(host):
            print(f"warning: --host is {host}: everyone who can reach this machine can use the page", file=sys.stderr)
        address = f"[{host}]" if ":" in host else host
        print(f"explorer: http://{address}:{listener.getsockname()[1]}/", flush=True)
        if root:
            print(f"at the proxy: {root}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.server(application).run(sockets=[listener])


def _examples(file: str | None) -> list[str]:
    """Return a few of the labeled prompts, evenly spaced over the file."""
    if not file:
        return []
    prompts = list(dict.fromkeys(row["prompt"] for row in read_labeled(file) if all(row.values())))
    return prompts[:: max(1, len(prompts) // EXAMPLES)][:EXAMPLES]
