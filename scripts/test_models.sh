#!/usr/bin/env bash
# The model tests with the large models as well: AlexNet, VGG-19, DenseNet-121, Inception v1 and v2, ZFNet with random
# weights, two of six workers crashed, against onnxruntime. Writes 1.3 GB below target/, needs about 4 GB of memory.
# Run scripts/test.sh first: it makes the Python environment.
set -euo pipefail
cd "$(dirname "$0")/.."
export CI=true FCDCC_MODELS=large
# One after the other: what is wanted here is the memory, not the time.
exec cargo test --release --locked --test onnx -- --test-threads 1 models::
