#!/usr/bin/env bash
# Makes .venv-peers with the libraries that this project is compared with. They bring some 80
# packages that the project itself does not need, so they live apart.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -x .venv-peers/bin/python ] || "$python" -m venv .venv-peers
torch=$(grep '^torch==' constraints.txt)
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "$torch" numpy
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "$torch" sae-lens==6.54.12
.venv-peers/bin/python -c 'import sae_lens; print("sae-lens", sae_lens.__version__)'
