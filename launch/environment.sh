# shellcheck shell=bash
# Sourced by the scripts in this folder. Creates .venv and installs the project with pinned versions.
# $extras: the optional dependencies to install (names in pyproject.toml, separated by commas; default: all).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python must be Python 3.11 or newer; set PYTHON, for example PYTHON=python3.12 bash launch/..." >&2
    exit 2
}
if [ ! -x .venv/bin/python ]; then
    say "create .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
extras=${extras:-all}
wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    say "install the project into .venv (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".[$extras]"
    echo "$wanted" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
