# Sourced by the scripts beside it: makes .venv once and installs the project with exact versions,
# and with what $extras names in pyproject.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than 3.11; name a newer one, as PYTHON=python3.12 bash launch/..." >&2
    exit 2
}
if [ ! -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
extras=${extras:-all}
wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$wanted" ]; then
    say "installing the project into .venv (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint constraints.txt --editable ".[$extras]"
    echo "$wanted" > .venv/installed
fi
export PATH="$PWD/.venv/bin:$PATH"
