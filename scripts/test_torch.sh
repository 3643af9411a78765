#!/usr/bin/env bash
# Tests fcdcc.torch and the examples of the documents with a wheel, in a Python that has torch and numpy: that of
# FCDCC_TORCH_PYTHON, else the first of the environment of scripts/test_python.sh, python3 and /usr/bin/python3 (Debian's
# package python3-torch) that has them.
#
#   scripts/test_torch.sh WHEEL
#
# Where none has them, it says so and ends with success.
set -euo pipefail
cd "$(dirname "$0")/.."

wheel="${1-}"
if [[ ! -f "$wheel" ]]; then
    echo "usage: scripts/test_torch.sh WHEEL" >&2
    exit 2
fi
venv="${FCDCC_PYTHON_VENV-$PWD/target/python-venv}"
chosen=""
for python in "${FCDCC_TORCH_PYTHON-}" "$venv/bin/python" python3 /usr/bin/python3; do
    if [[ -n "$python" ]] && "$python" -c 'import sys, numpy, torch; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
        chosen="$python"
        break
    fi
done
if [[ -z "$chosen" ]]; then
    echo "NOTICE: fcdcc.torch is not tested: no Python here has torch (FCDCC_TORCH_PYTHON names one; Debian: python3-torch)"
    exit 0
fi
echo "fcdcc.torch with $("$chosen" -c 'import sys, torch; print(f"torch {torch.__version__}, {sys.executable}")')"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
# The wheel is for every CPython from 3.10 on, and pytest for every Python: another Python can install them.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$site" \
    "$wheel" pytest pluggy iniconfig packaging pygments
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" "$chosen" -m pytest -p no:cacheprovider -c python/pyproject.toml --rootdir python \
    python/tests/test_torch.py python/tests/test_layers.py python/tests/test_docstrings.py
