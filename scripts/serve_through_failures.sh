#!/usr/bin/env bash
# Serves LeNet-5 and a ResNet-50 with random weights over four worker processes of two workers each, and drives the server
# with tritonclient over HTTP and gRPC while two of the processes are killed. Every answer must equal onnxruntime's.
#
#     scripts/serve_through_failures.sh [FCDCC]
#
# FCDCC is the command, by default that of a release build with `--features full`, which is made. The Python packages are
# installed into .venv-triton from PyPI. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv-triton/bin/python
if ! "$python" -c 'import onnx, onnxruntime, tritonclient.http, tritonclient.grpc' >/dev/null 2>&1; then
    python3 -m venv .venv-triton
    "$python" -m pip install --quiet 'tritonclient[http,grpc]==2.73.0' onnx==1.23.2 onnxruntime==1.32.0
fi
fcdcc="${1-}"
if [[ -z "$fcdcc" ]]; then
    cargo build --release --locked --features full -p fcdcc-cli
    fcdcc=target/release/fcdcc
fi

folder="$(mktemp -d)"
processes=()
ended() {
    for process in "${processes[@]}"; do kill -KILL "$process" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap ended EXIT

"$fcdcc" demo --quiet --write "$folder"
"$python" benches/peers/python/random_weights.py "$folder" resnet50
for model in lenet5 resnet50; do
    mkdir -p "$folder/models/$model/1"
    mv "$folder/$model.onnx" "$folder/models/$model/1/model.onnx"
done
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
{
    printf '[cluster]\nlisten = "127.0.0.1:%s"\n' "$port"
    for name in alpha beta gamma delta; do printf '[[worker]]\nkind = "remote"\nname = "%s"\n' "$name"; done
} >"$folder/pool.toml"
workers=()
for name in alpha beta gamma delta; do
    "$fcdcc" --quiet worker --connect "127.0.0.1:$port" --name "$name" --backend cpu --workers 2 >/dev/null 2>&1 &
    processes+=($!)
    workers+=($!)
done
"$fcdcc" serve "$folder/models" --pool "$folder/pool.toml" --workers 8 --tolerate 4 --calibrate never \
    --http 127.0.0.1:0 --grpc 127.0.0.1:0 2>"$folder/log" &
server=$!
processes+=("$server")
line=
for _ in $(seq 1200); do
    if line="$(grep -o 'at http://[^;]*; gRPC at [^;]*' "$folder/log")"; then break; fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[[ -n "$line" ]] || { cat "$folder/log" >&2; exit 1; }
http="${line#at http://}"
http="${http%%;*}"
processor="$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores"
echo "$(date -u +%Y-%m-%d), $processor, $("$fcdcc" --version)"
"$python" scripts/serve_through_failures.py "$http" "${line##* }" "$folder/models" "${workers[0]}" "${workers[1]}"
kill -TERM "$server"
wait "$server"
