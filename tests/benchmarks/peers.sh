#!/usr/bin/env bash
# Creates .venv-peers with the libraries that this project is compared with. They depend on about 100
# packages that the project does not need, so they have their own venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -x .venv-peers/bin/python ] || "$python" -m venv .venv-peers
install() { .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' constraints.txt)
install "$torch" numpy
# dictionary-learning imports nnsight, which depends on a torchvision that may not match this torch; then
# transformers cannot be imported. Neither library uses torchvision.
install "$torch" sae-lens==6.54.12 eai-sparsify==1.3.3 'python-socketio[client]' pillow sentencepiece zstandard
install --no-deps dictionary-learning==0.1.0 nnsight==0.3.7
# Their other dependencies serve models and plots that the compared measures do not use; sae-bench also pins numpy 1.
install scikit-learn beartype jaxtyping
install --no-deps sae-bench==0.6.0 overcomplete==0.3.0
.venv-peers/bin/python - <<'END'
from importlib.metadata import version

import dictionary_learning.training, sae_lens, sparsify  # fails if the versions do not fit together
import sae_bench.evals.absorption.feature_absorption_calculator
import sae_bench.evals.sparse_probing.probe_training

for name in ("torch", "sae-lens", "eai-sparsify", "dictionary-learning", "sae-bench", "overcomplete"):
    print(name, version(name))
END
