#!/usr/bin/env bash
# Builds the Python wheel, which carries the command line too.
#
#   scripts/build_wheel.sh             the release wheel, into target/wheels
#   scripts/build_wheel.sh --dev       the wheel of the tests: the dev profile, what scripts/test.sh has built
#   scripts/build_wheel.sh --sdist     the source distribution
#
# FCDCC_MATURIN names maturin where it is not on the PATH; FCDCC_WHEELS the folder for the result.
set -euo pipefail
cd "$(dirname "$0")/.."

maturin="${FCDCC_MATURIN-maturin}"
out="${FCDCC_WHEELS-$PWD/target/wheels}"
case "${*-}" in
    "") what=(build --release --locked) ;;
    --dev) what=(build --profile dev --locked --features like-tests) ;;
    --sdist) what=(sdist) ;;
    *)
        echo "usage: scripts/build_wheel.sh [--dev | --sdist]" >&2
        exit 2
        ;;
esac
if ! command -v "$maturin" >/dev/null; then
    echo "maturin was not found: pip install 'maturin>=1.9,<2', or name it in FCDCC_MATURIN" >&2
    exit 1
fi
exec "$maturin" "${what[@]}" --manifest-path python/Cargo.toml --out "$out"
