#!/usr/bin/env bash
# Run the trainer's tests with the newest Python, JAX and Flax, in .venv-newest, which has neither torch nor CUDA.
# Arguments are passed to pytest. PYTHON_NEWEST: the Python, 3.12 or newer; by default python3.13 or python3.12, on PATH
# or in pyenv. Without such a Python, one line says that these tests did not run.
#   bash launch/test_newest.sh               the fast tests, as launch/test.sh runs them
#   bash launch/test_newest.sh -m ""         also the slow ones
# shellcheck disable=SC2034

is_newer() { "$1" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
for python in ${PYTHON_NEWEST:-python3.13 python3.12 "$pyenv"/3.13.*/bin/python "$pyenv"/3.12.*/bin/python}; do
    if is_newer "$python"; then break; fi
    python=
done
if [ -z "$python" ]; then
    if [ -n "${PYTHON_NEWEST:-}" ]; then
        echo "error: PYTHON_NEWEST is $PYTHON_NEWEST; it must be Python 3.12 or newer" >&2
        exit 2
    fi
    echo "NOT RUN: the trainer's tests with the newest JAX need Python 3.12 or 3.13; set PYTHON_NEWEST"
    exit 0
fi

# The trainer, TensorBoard and the test tools.
extras=train,tensorboard,test venv=.venv-newest constraints=constraints-newest.txt
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

say "pytest with $(python --version), JAX $(python -c 'import jax; print(jax.__version__)')"
trainer=(
    tests/test_config.py
    tests/revelio_jax/{sae,store,training,evaluation,planning}
    tests/revelio_jax/test_{evaluate,export,files,grid,presets,train}.py
)
python -m pytest -n "${WORKERS:-$(getconf _NPROCESSORS_ONLN)}" --dist loadfile --no-loadscope-reorder \
    -m "not slow" "${trainer[@]}" "$@"
