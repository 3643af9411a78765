#!/usr/bin/env bash
# Every check of the repository: formatting, lints, tests, documentation, examples.
#
#   scripts/test.sh           what CI runs
#   scripts/test.sh --all     also the bare library, without any feature (compiles its dependencies once more)
#
# FCDCC_SECOND_VULKAN_ICD, the driver file of a second Vulkan implementation (scripts/fetch_swiftshader.sh prints one), runs
# the GPU tests on that one too, and those of pools over both.
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

second_icd="${FCDCC_SECOND_VULKAN_ICD-}"
if [[ -n "$second_icd" && ! -r "$second_icd" ]]; then
    echo "FCDCC_SECOND_VULKAN_ICD names $second_icd, which cannot be read" >&2
    exit 2
fi

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

# Suites of the GPU tests once more, with the Vulkan drivers of the first argument, a variable of the Vulkan loader.
gpu_tests() {
    local drivers="$1" suite
    shift
    # Choices among the machine's own adapters would hide those of another driver.
    local with=(env -u VK_DRIVER_FILES -u VK_ICD_FILENAMES -u WGPU_ADAPTER_NAME "$drivers")
    if cargo nextest --version >/dev/null 2>&1; then
        step "${with[@]}" cargo nextest run --locked --features full --test gpu "$@"
    else
        for suite in "$@"; do
            step "${with[@]}" cargo test --locked --features full --test gpu -- "$suite"
        done
    fi
}

# What commands at the root take, and what only feature `serve` builds.
all_packages=(-p fcdcc -p fcdcc-bench -p fcdcc-cli -p fcdcc-serve)

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

# What the last steps need comes over the network while the compiler works; they fetch what is missing then.
scripts/test_python.sh --environment >/dev/null 2>&1 &
environment=$!
trap 'kill "$environment" 2>/dev/null || true' EXIT

step cargo fmt --all --check
step cargo fmt --check --manifest-path benches/peers/Cargo.toml
step cargo clippy --all-targets --locked --features full "${all_packages[@]}" -p fcdcc-python -- -D warnings
# What a first `cargo build` takes, and the least.
step cargo clippy --locked -p fcdcc-cli -- -D warnings
step cargo clippy --locked -p fcdcc-cli --no-default-features -- -D warnings
if $all; then
    step cargo clippy --locked -p fcdcc --no-default-features -- -D warnings
fi
if cargo nextest --version >/dev/null 2>&1; then
    step cargo nextest run --locked --features full "${all_packages[@]}"
    # nextest does not show what a binary says whose tests are all ignored.
    step cargo test --locked --features full --quiet --test processes -- --list --ignored netns::
else
    step cargo test --locked --features full "${all_packages[@]}" --lib --bins --tests
fi
if [[ -n "$second_icd" ]]; then
    gpu_tests VK_DRIVER_FILES="$second_icd" backends:: "chaos::gpu queues" kernels:: tuning:: worker::
    gpu_tests VK_ADD_DRIVER_FILES="$second_icd" backends:: two_adapters::
else
    printf '\nNOTICE: no FCDCC_SECOND_VULKAN_ICD: the GPU tests ran on one Vulkan implementation alone\n'
fi
step cargo test --locked --features full --doc
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps --features full,testing
RUSTDOCFLAGS="-D warnings" step cargo doc --locked --no-deps -p fcdcc-serve
step cargo build --locked --features full --examples
step cargo run --locked --features full --quiet --example quickstart
step cargo run --locked --features full --quiet --example classify
step cargo run --locked --features full --quiet --example cluster
# The command that the tests were run with.
step scripts/check_triton_clients.sh target/debug/fcdcc
# The wheel consists of what has been built above, and the extension module.
wait "$environment" || true
step scripts/test_python.sh

printf '\nall checks passed\n'
