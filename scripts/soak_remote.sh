#!/usr/bin/env bash
# Soaks a master with tasks on remote workers (50,000, or as many as are said) and prints its memory on the way: it must not
# grow with them. About a minute on two cores.
#
#     scripts/soak_remote.sh [TASKS]
set -euo pipefail
cd "$(dirname "$0")/.."
FCDCC_SOAK_TASKS="${1:-50000}" cargo test --locked --features full --test cluster_memory -- --nocapture
