#!/usr/bin/env bash
# Layers of wild data against exact sums, element by element: no error may exceed either of its bounds.
#
#   scripts/exactness.sh [LAYERS [FIRST_SEED]]      100000 layers from seed 1: some twenty minutes
set -euo pipefail
cd "$(dirname "$0")/.."
FCDCC_TRIALS="${1-100000}" FCDCC_SEED="${2-1}" \
    cargo test --locked --test library -- --nocapture errors_of_wild_data_never_exceed_either_bound
