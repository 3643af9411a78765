#!/usr/bin/env bash
# Every check of the repository: formatting, lints, tests, documentation, examples.
#
#   scripts/test.sh           what CI runs
#   scripts/test.sh --all     also the bare library, without any feature (compiles its dependencies once more)
set -euo pipefail
cd "$(dirname "$0")/.."

case "${*-}" in
    "") all=false ;;
    --all) all=true ;;
    *)
        echo "usage: scripts/test.sh [--all]" >&2
        exit 2
        ;;
esac

# Mesa says so on standard error of every process where this is not set.
if [[ -z "${XDG_RUNTIME_DIR-}" ]]; then
    XDG_RUNTIME_DIR="$(mktemp -d)"
    export XDG_RUNTIME_DIR
    trap 'rm -rf "$XDG_RUNTIME_DIR"' EXIT
fi

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

has_onnx() {
    "$1" -c 'import onnx, onnxruntime, numpy' >/dev/null 2>&1
}

# tests/onnx makes its cases with these packages.
if [[ -z "${FCDCC_PYTHON-}" ]] && ! has_onnx .venv/bin/python; then
    printf '\n== Python environment in .venv\n'
    if python3 -m venv .venv && .venv/bin/python -m pip install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy; then
        echo "onnx 1.23.2 and onnxruntime 1.32.0 installed"
    else
        rm -rf .venv
        echo "NOTICE: no .venv with onnx could be made: unless python3 has it, the ONNX suites are ignored (fails with CI=true)"
    fi
fi

step cargo fmt --all --check
step cargo fmt --check --manifest-path benches/peers/Cargo.toml
step cargo clippy --all-targets --locked -- -D warnings
step cargo clippy --locked -p fcdcc-cli --no-default-features -- -D warnings
if $all; then
    step cargo clippy --locked -p fcdcc --no-default-features -- -D warnings
fi
if cargo nextest --version >/dev/null 2>&1; then
    step cargo nextest run --locked
    # nextest does not show what a binary says whose tests are all ignored.
    step cargo test --locked --quiet --test processes -- --list --ignored netns::
else
    step cargo test --locked --lib --bins --tests
fi
step cargo test --locked --doc
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps --features testing
step cargo build --locked --examples
step cargo run --locked --quiet --example quickstart
step cargo run --locked --quiet --example classify
step cargo run --locked --quiet --example cluster

printf '\nall checks passed\n'
