#!/usr/bin/env bash
# Soaks a server of LeNet-5 over six worker processes: 20,000 requests (or as many as are said) near capacity, while workers,
# two at a time, are killed, stopped and restarted at random. Every request must be answered once, rightly, and in time, and
# the server's memory must not grow. Then two of six workers are late by 200 ms, and the 99th percentile is compared with
# that of workers without faults. Prints the figures; exits with 1 where one of them misses its limit.
#
#     scripts/soak_serve.sh [REQUESTS [FCDCC]]
#
# FCDCC is the command, by default that of a release build with `--features full`, which is made. SEED=N repeats the same
# faults; RATE=N sets the requests a second, by default three quarters of what the server answered at most. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."
requests="${1:-20000}"
fcdcc="${2-}"
RANDOM="${SEED:-1}"
limit_ms=10000
beyond_ms=50

if [[ -z "$fcdcc" ]]; then
    cargo build --release --locked --features full -p fcdcc-cli
    fcdcc=target/release/fcdcc
fi
fcdcc="$(realpath "$fcdcc")"
folder="$(mktemp -d)"
server=
ended() {
    rm -f "$folder/loading"
    # A stopped process must go on to be ended.
    for pid in $server $(cat "$folder"/*.pid 2>/dev/null); do
        kill -CONT "$pid" 2>/dev/null || true
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap ended EXIT
"$fcdcc" demo --quiet --write "$folder"
cd "$folder"

# A port that is free now.
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
{
    printf '[cluster]\nlisten = "127.0.0.1:%s"\n' "$port"
    for name in w0 w1 w2 w3 w4 w5; do printf '[[worker]]\nkind = "remote"\nname = "%s"\n' "$name"; done
} >pool.toml

start_worker() {
    "$fcdcc" --quiet worker --connect "127.0.0.1:$port" --name "$1" --backend cpu --workers 1 >/dev/null 2>&1 &
    echo $! >"$1.pid"
    # Its end is no news.
    disown
}

# Starts a server with further options and waits until it is ready.
start_server() {
    "$fcdcc" serve lenet5.onnx --calibrate never --workers 6 --http 127.0.0.1:0 --grpc off --queue 4096 \
        --deadline 5s "$@" 2>log &
    server=$!
    url=
    for _ in $(seq 600); do
        url="$(grep -o 'http://[^;]*' log || true)"
        if [[ -n "$url" ]] && curl -fs -o ready "$url/v2/health/ready"; then return; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat log >&2
    exit 1
}

# A value of a report: field NAME FILE, as in latency.p99.
field() {
    python3 -c 'import json, sys; v = json.load(open(sys.argv[2]))
for part in sys.argv[1].split("."): v = v[part]
print(v)' "$1" "$2"
}

load() {
    "$fcdcc" --quiet bench --serve "$url" --model lenet5 --limit "${limit_ms}ms" --report "$@"
}

memory() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$1/status"
}

# Faults of the workers from $1 on, three of them, one at a time, until the file `loading` is gone.
harm() {
    local name how
    while [[ -e loading ]]; do
        name="w$((RANDOM % 3 + $1))"
        how=$((RANDOM % 2))
        if ((how == 0)); then
            kill -KILL "$(cat "$name.pid")" 2>/dev/null || true
            echo "killed $name" >>harm.log
        else
            kill -STOP "$(cat "$name.pid")" 2>/dev/null || true
            echo "stopped $name" >>harm.log
        fi
        sleep "0.$((RANDOM % 8 + 1))"
        if ((how == 0)); then
            start_worker "$name"
        else
            kill -CONT "$(cat "$name.pid")" 2>/dev/null || true
        fi
        sleep "0.$((RANDOM % 5 + 2))"
    done
}

# The server's memory while the load lasts.
watch_memory() {
    while [[ -e loading ]]; do
        memory "$server" >>memory.log
        sleep 0.5
    done
}

missed=0
judge() {
    local text="$1"
    shift
    if python3 -c "import sys; sys.exit(not ($*))"; then
        echo "  met:    $text"
    else
        echo "  missed: $text"
        missed=1
    fi
}

processor="$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores"
echo "$(date -u +%Y-%m-%d), $processor, $("$fcdcc" --version)"

for name in w0 w1 w2 w3 w4 w5; do start_worker "$name"; done
start_server --pool pool.toml
# Twice as many requests a second, until they are no longer answered as they come.
probe=50
probed=0
while true; do
    load capacity.json --rate "$probe" --duration 3s --connections 16
    probed=$((probed + $(field outcomes.right capacity.json) + 1))
    capacity="$(field throughput capacity.json)"
    python3 -c "import sys; sys.exit(not ($capacity > 0.85 * $probe))" || break
    probe=$((probe * 2))
done
rate="${RATE:-$(python3 -c "print(max(1, int($capacity * 0.75)))")}"
time="$((requests * 1000 / rate))ms"
echo "capacity $capacity answers a second at 16 in flight; $requests requests at $rate a second"

touch loading
before="$(memory "$server")"
watch_memory &
watching=$!
harm 0 &
harming=$!
RANDOM=$((${SEED:-1} + 1)) harm 3 &
also_harming=$!
status=0
load soak.json --rate "$rate" --duration "$time" --arrivals constant --connections 256 --seed 1 || status=$?
rm loading
wait "$harming" "$also_harming" "$watching"
curl -fs "$url/metrics" >metrics
answered="$(awk '/^fcdcc_serve_requests_total.*status="200"/ { n += $2 } END { print n + 0 }' metrics)"
sent="$(field outcomes.sent soak.json)"
right="$(field outcomes.right soak.json)"
worst="$(field service.max soak.json)"
early="$(head -n $(($(wc -l <memory.log) / 3 + 1)) memory.log | sort -n | tail -1)"
late="$(tail -n $(($(wc -l <memory.log) / 3 + 1)) memory.log | sort -n | tail -1)"
echo "soak: $(grep -c killed harm.log || true) kills, $(grep -c stopped harm.log || true) stops"
echo "  sent $sent, right $right, $(field outcomes soak.json)"
echo "  ms from arrival: p50 $(field latency.p50 soak.json), p99 $(field latency.p99 soak.json), max $(field latency.max soak.json)"
echo "  memory of the server in KiB: $before before, at most $early in the first third, $late in the last"
judge "every request was answered rightly, status $status" "$sent == $right and $status == 0"
# The loads before were answered by the same server, and so was the first request of each.
judge "the server counted each answer once: $answered" "$answered == $right + 1 + $probed"
judge "none took longer than its deadline and $beyond_ms ms: $worst ms" "$worst <= $limit_ms + $beyond_ms"
judge "memory is flat" "$late <= $early * 1.1 + 8192"
kill -TERM "$server"
wait "$server" || { echo "  missed: the server ended with status $?"; missed=1; }
for file in *.pid; do
    kill -TERM "$(cat "$file")" 2>/dev/null || true
    rm "$file"
done

# In one process, so that nothing but the late workers differs.
for which in calm late; do
    faults=()
    [[ "$which" == calm ]] || faults=(--fault 1,4:delay=200ms)
    start_server --backend cpu "${faults[@]}"
    load "warm-$which.json" --rate 100 --duration 3s --seed 2
    load "$which.json" --rate "${LATE_RATE:-100}" --duration "${LATE_DURATION:-20s}" --seed 3
    kill -TERM "$server"
    wait "$server" || { echo "  missed: the server ended with status $?"; missed=1; }
done
calm="$(field latency.p99 calm.json)"
late="$(field latency.p99 late.json)"
echo "two of six workers late by 200 ms: p99 $late ms, without $calm ms (median $(field latency.p50 late.json) and $(field latency.p50 calm.json))"
judge "p99 is at most 1.2 of that without" "$late <= 1.2 * $calm"
exit "$missed"
