#!/usr/bin/env bash
# Serves LeNet-5 over six workers, one of which is late, and calls every public method of tritonclient's clients on it.
#
#     scripts/check_triton_clients.sh [FCDCC]
#
# FCDCC is the command (by default that of a build with `--features full`, which is made). The clients are installed into
# .venv-triton from PyPI; where they cannot be had, the check is left out with a notice.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-triton/bin/python
has_clients() {
    "$1" -c 'import tritonclient.http, tritonclient.grpc' >/dev/null 2>&1
}
if ! has_clients "$python"; then
    if ! { python3 -m venv .venv-triton && "$python" -m pip install --quiet 'tritonclient[http,grpc]==2.73.0'; } ||
        ! has_clients "$python"; then
        rm -rf .venv-triton
        echo "NOTICE: tritonclient could not be installed: its methods are not checked"
        exit 0
    fi
fi

fcdcc="${1-}"
if [[ -z "$fcdcc" ]]; then
    cargo build --locked --quiet --features full -p fcdcc-cli
    fcdcc=target/debug/fcdcc
fi

folder="$(mktemp -d)"
server=
ended() {
    [[ -z "$server" ]] || kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap ended EXIT

"$fcdcc" demo --quiet --write "$folder"
mkdir -p "$folder/models/lenet5/1"
cp "$folder/lenet5.onnx" "$folder/models/lenet5/1/model.onnx"
cp "$folder/labels.txt" "$folder/models/lenet5/1"
printf 'labels = "labels.txt"\n[picture]\n' >"$folder/models/lenet5/1/model.toml"
"$fcdcc" serve "$folder/models" --backend cpu --calibrate never --fault 2:delay=100ms \
    --http 127.0.0.1:0 --grpc 127.0.0.1:0 2>"$folder/log" &
server=$!
for _ in $(seq 600); do
    if line="$(grep -o 'at http://[^;]*; gRPC at [^;]*' "$folder/log")"; then break; fi
    kill -0 "$server" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
http="${line#at http://}"
http="${http%%;*}"
grpc="${line##* }"
"$python" scripts/check_triton_clients.py "$http" "$grpc" "$folder/digit.png"
