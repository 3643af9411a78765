#!/usr/bin/env bash
# Builds the Python wheel, which carries the command line too.
#
#   scripts/build_wheel.sh             the release wheel, into target/wheels
#   scripts/build_wheel.sh --dev       the wheel of the tests: the dev profile, what scripts/test.sh has built
#   scripts/build_wheel.sh --sdist     the source distribution, checked to be complete
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
"$maturin" "${what[@]}" --manifest-path python/Cargo.toml --out "$out"
[[ "${what[0]}" == sdist ]] || exit 0

# Its lock file must fit its manifests; zenoh's transport must be compiled with the settings of .cargo/config.toml; the
# description must be that of the package.
unpacked="$(mktemp -d)"
trap 'rm -rf "$unpacked"' EXIT
tar -xzf "$(ls -t "$out"/fcdcc-*.tar.gz | head -n 1)" -C "$unpacked" --strip-components 1
missing() {
    echo "the source distribution is incomplete: $1" >&2
    exit 1
}
(cd "$unpacked" && cargo metadata --locked --offline --format-version 1 >/dev/null) || missing "cargo refuses it"
cmp -s .cargo/config.toml "$unpacked/.cargo/config.toml" || missing "it has another .cargo/config.toml, or none"
grep -q TCP_LINGER_TIMEOUT "$unpacked/.cargo/config.toml" || missing "TCP_LINGER_TIMEOUT is not set"
cmp -s python/PYPI.md "$unpacked/PYPI.md" || missing "PYPI.md is not at its top"
echo "checked: $(find "$unpacked" -type f | wc -l) files, the lock file, .cargo/config.toml, the description"
