"""The console script ``revelio``, with one subcommand per task. A command's module is imported when it runs."""

import importlib
import importlib.metadata
import sys
import types
from collections.abc import Sequence

from revelio_jax import cli
from revelio_jax.config import did_you_mean
from revelio_jax.errors import InputError, report_errors

# Command -> its module, whose main(arguments) runs it; the extras that it needs; its help.
COMMANDS = {
    "extract": ("extract.run", "extract", "run a pipeline and write an activation store"),
    "train": ("revelio_jax.train", "train", "train an SAE on one hook point of a store"),
    "grid": ("revelio_jax.grid", "train", "train all SAEs of a grid in one program"),
    "evaluate": ("revelio_jax.evaluate", "train", "measure FVU, L0 and dead latents on held-out rows"),
    "export": ("revelio_jax.export", "train", "write the SAE folder"),
    "learn": ("revelio_jax.steering.latents", "steer", "find the latents of a concept from labeled prompts"),
    "steer": ("revelio_jax.benchmark.steer", "steer", "draw and measure images at several strengths"),
    "sweep": ("revelio_jax.benchmark.sweep", "steer,plot", "draw the effect against the strength; suggest a strength"),
    "benchmark": ("revelio_jax.benchmark.command", "steer,plot", "compare methods that remove a concept"),
    "splice": ("revelio_jax.faithfulness.splice", "steer", "measure the pipeline with the SAE's reconstruction in it"),
    "scan": ("revelio_jax.faithfulness.scan", "steer,plot", "measure what each hook point carries, without an SAE"),
    "interpret": (
        "revelio_jax.interpret.command",
        "train,extract",
        "record what each latent fires on, and write the report",
    ),
    "report": ("revelio_jax.interpret.report.command", "extract", "write the report again, or compare runs"),
    "tags": ("revelio_jax.interpret.tags.command", "steer", "label latents with a vision-language model"),
    "probes": ("revelio_jax.interpret.probes.command", "train,plot", "train probes on activations and on latents"),
    "granularity": (
        "revelio_jax.interpret.granularity.command",
        "plot",
        "draw label purity by hook point and timestep",
    ),
    "plot": ("revelio_jax.plot", "plot", "draw loss, FVU and firing densities of runs"),
    "plan": ("revelio_jax.plan", "plan", "estimate memory, time and cost on GPUs and TPUs you do not have"),
    "explore": ("revelio_jax.explore.command", "explore", "serve a page with a live pipeline"),
}
GRAMMAR = """\
--config takes a shipped config, a config file, or the config.json of a run;
--config.train.steps=1000 overrides a field. COMMAND --help shows all flags.
Status 2: wrong input; 1: a failure. REVELIO_TRACEBACK=1 prints the traceback."""


def main(arguments: Sequence[str] | None = None, program: str = "revelio") -> None:
    """Run a command. ``program`` is the name of this program in messages. Exit with status 2 on wrong input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors():
        command = arguments[0] if arguments else "--help"
        if command in ("--help", "-h", "help"):
            print(overview(program))
        elif command == "--version":
            print(f"revelio_jax {importlib.metadata.version('revelio_jax')}")
        elif command not in COMMANDS:
            raise InputError(f"unknown command {command!r}; {did_you_mean(command, COMMANDS, 'commands')}")
        else:
            with cli.program_name(f"{program} {command}"):
                import_command(command).main(arguments[1:])


def import_command(command: str) -> types.ModuleType:
    """Import the module of a command. Raise InputError with the extras of the command if a package is missing."""
    module, extras, _ = COMMANDS[command]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "extract", "revelio_jax"):
            raise
        raise InputError(f"{command} needs the package {package}; pip install 'revelio_jax[{extras}]'") from error


def overview(program: str) -> str:
    """Return the help of ``revelio --help``: one line per command, at most 80 columns and 24 lines."""
    lines = [f"usage: {program} COMMAND --config NAME_OR_FILE [--flag value ...]"]
    lines += [f"  {name:<12} {help}" for name, (_, _, help) in COMMANDS.items()]
    return "\n".join([*lines, "", *GRAMMAR.splitlines()])
