#!/usr/bin/env bash
# Run tests of the store and the trainer with the oldest versions of dependencies that
# pyproject.toml allows, in .venv-lowest, which has Python 3.11 and no torch. Arguments are passed to pytest.
# Without Python 3.11, one line says that these tests did not run.
#   bash launch/test_lowest.sh           a few minutes of tests, as launch/test.sh runs them
#   bash launch/test_lowest.sh --all     all fast tests of the trainer
# shellcheck disable=SC2034

if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "NOT RUN: the tests with the oldest versions need Python 3.11; set PYTHON"
    exit 0
fi
extras=train,tensorboard,plot,test venv=.venv-lowest constraints=constraints-lowest.txt
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

say "pytest with the oldest versions: JAX $(python -c 'import jax; print(jax.__version__)')"
tests=(
    tests/test_config.py
    tests/revelio_jax/store
    tests/revelio_jax/sae/test_{code,gradients}.py
    tests/revelio_jax/test_{files,train}.py
)
if [ "${1:-}" = --all ]; then
    shift
    tests+=(tests/revelio_jax/{sae,training} tests/revelio_jax/test_{evaluate,export,grid,presets}.py)
fi
python -m pytest -n "${WORKERS:-$(getconf _NPROCESSORS_ONLN)}" --dist loadfile --no-loadscope-reorder \
    -m "not slow" "${tests[@]}" "$@"
