#!/usr/bin/env bash
# Builds the Python wheel in the dev profile, installs it into a new environment, and tests it there without a Rust toolchain
# on the PATH: pytest (against onnxruntime, with the examples of docstrings, documents and notebooks), ruff, mypy, pyright.
#
#   scripts/test_python.sh [ARGUMENTS OF PYTEST]
#   scripts/test_python.sh --environment          only fetches the packages
#
# Without Python, or packages from the network, it says so and ends with success; with CI=true with a failure.
# FCDCC_PYTHON_VENV names the folder of the environment (default: target/python-venv), which is kept between runs.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${FCDCC_PYTHON_VENV-$PWD/target/python-venv}"
wheels="$PWD/target/wheels-dev"

leave_out() {
    echo "NOTICE: the Python package is not tested: $1 (fails with CI=true)"
    [[ "${CI-}" != true ]] || exit 1
    exit 0
}

python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 ||
    leave_out "there is no python3 of version 3.10 or newer with venv"
if [[ ! -x "$venv/bin/python" ]]; then
    python3 -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    'maturin>=1.9,<2' numpy onnx==1.23.2 onnxruntime==1.32.0 pytest mypy pyright ruff pandas pandas-stubs tqdm types-tqdm \
    ml_dtypes nbclient nbformat ipykernel matplotlib ||
    leave_out "its packages cannot be installed"
if [[ "${1-}" == --environment ]]; then
    exit 0
fi

rm -rf "$wheels"
FCDCC_MATURIN="$venv/bin/maturin" FCDCC_WHEELS="$wheels" scripts/build_wheel.sh --dev
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheels"/fcdcc-*.whl

# What a user has: no compiler.
export PATH="$venv/bin:/usr/bin:/bin"
"$venv/bin/python" -m pytest -c python/pyproject.toml --rootdir python python/tests "$@"
(cd python && "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/python" -m mypy && "$venv/bin/pyright" --pythonpath "$venv/bin/python")
# PyTorch is large: tested where some Python has it.
scripts/test_torch.sh "$wheels"/fcdcc-*.whl
