#!/usr/bin/env bash
# Everything that CI checks: style, then the tests.
extras=all,wandb,datasets
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

say "ruff"
ruff check .
ruff format --check .
say "pytest"
pytest "$@"
