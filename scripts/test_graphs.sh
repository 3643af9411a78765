#!/usr/bin/env bash
# Random graphs around convolutions against onnxruntime without optimisations, thousands of them.
#
#   scripts/test_graphs.sh [COUNT [SEED]]      5000 graphs of seed 2 without arguments
#
# Run scripts/test.sh first: it makes the Python environment. Writes about 0.1 MB a graph below target/.
set -euo pipefail
cd "$(dirname "$0")/.."
export CI=true FCDCC_GRAPHS="${1-5000}" FCDCC_SEED="${2-2}"
exec cargo test --locked --test onnx -- graphs::
