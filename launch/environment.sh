# shellcheck shell=bash
# Sourced by the scripts in this folder. Creates a virtual environment, installs the project into it with pinned
# versions, and puts it first on PATH. The script may set before:
#   extras       the optional dependencies to install (names in pyproject.toml, separated by commas; default: all)
#   venv         the folder of the environment (default: .venv)
#   constraints  the file of pinned versions (default: constraints.txt)
#   python       the Python that creates the environment (default: $PYTHON, else python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

extras=${extras:-all} venv=${venv:-.venv} constraints=${constraints:-constraints.txt}
python=${python:-${PYTHON:-python3}}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: $python is missing or older than Python 3.11; set PYTHON, for example PYTHON=python3.12 bash launch/..." >&2
    exit 2
}
if [ ! -x "$venv/bin/python" ]; then
    say "create $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi
wanted="$extras $(cat pyproject.toml "$constraints" | cksum)"
if [ "$(cat "$venv/installed" 2>/dev/null || true)" != "$wanted" ]; then
    say "install the project into $venv (a few minutes the first time)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$constraints" --editable ".[$extras]"
    echo "$wanted" > "$venv/installed"
fi
export PATH="$PWD/$venv/bin:$PATH"
