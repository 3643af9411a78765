#!/usr/bin/env python3
"""Checks docs/monitoring against a real Prometheus: every panel of the dashboard has data, every rule is valid.

    python3 scripts/check_monitoring.py FCDCC [--seconds 30]

FCDCC is the command, built with `--features full`. Needs `prometheus` and `promtool` (Debian: `apt install prometheus`); no
Python package. On loopback, a worker process with four devices and a server with two workers of its own compute the digits of
the demonstration, while Prometheus collects from both. Then the query of every panel is asked and must return a sample, the
rules must be loaded, and none of their alerts may fire. As a control, queries for metrics that do not exist must return
nothing. All processes are ended before the script returns. Exit code 1 if a check failed, 2 if a program is missing.
"""
import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MONITORING = os.path.join(ROOT, "docs", "monitoring")
START_S = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, body=None, timeout=10):
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"} if body else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read()


def wait_for(url, what, process):
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        if process.poll() is not None:
            sys.exit(f"{what} ended with code {process.returncode}")
        try:
            return ask(url)
        except OSError:
            time.sleep(0.2)
    sys.exit(f"{what} did not answer within {START_S} s")


def query(prometheus, expression):
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    return json.loads(ask(url))["data"]["result"]


def panels():
    """Title and query of every target of the dashboard, with the variables that Grafana replaces."""
    with open(os.path.join(MONITORING, "dashboard.json")) as file:
        for panel in json.load(file)["panels"]:
            for target in panel["targets"]:
                yield panel["title"], target["expr"].replace("$__rate_interval", "15s")


def check(command, folder, seconds, started):
    ports = {name: free_port() for name in ("cluster", "worker", "http", "prometheus")}
    local = {name: f"127.0.0.1:{port}" for name, port in ports.items()}

    def start(name, *arguments):
        log = open(os.path.join(folder, f"{name}.log"), "wb")
        started.append(subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=folder))
        return started[-1]

    cluster = f"tcp/{local['cluster']}"
    worker = start(
        "worker", command, "worker", "--listen", cluster, "--name", "alpha", "--workers", "4", "--metrics", local["worker"]
    )
    wait_for(f"http://{local['worker']}/readyz", "the worker", worker)
    with open(os.path.join(folder, "pool.toml"), "w") as file:
        file.write(f'[cluster]\nconnect = "{cluster}"\n\n[[worker]]\nkind = "remote"\nname = "alpha"\n\n')
        file.write('[[worker]]\nkind = "cpu"\ncount = 2\n')
    model = os.path.join(ROOT, "assets", "digits", "lenet5.onnx")
    server = start("serve", command, "serve", model, "--pool", "pool.toml", "--http", local["http"], "--grpc", "off")
    wait_for(f"http://{local['http']}/v2/health/ready", "the server", server)
    with open(os.path.join(folder, "prometheus.yml"), "w") as file:
        targets = ", ".join(f'"{local[name]}"' for name in ("worker", "http"))
        file.write("global: {scrape_interval: 1s, evaluation_interval: 1s}\n")
        file.write(f"rule_files: [{json.dumps(os.path.join(MONITORING, 'alerts.yml'))}]\n")
        file.write(f"scrape_configs: [{{job_name: fcdcc, static_configs: [{{targets: [{targets}]}}]}}]\n")
    prometheus = start(
        "prometheus", shutil.which("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data",
        f"--web.listen-address={local['prometheus']}",
    )  # fmt: skip
    at = f"http://{local['prometheus']}"
    wait_for(f"{at}/-/ready", "Prometheus", prometheus)
    # Every tenth request is a batch: the slabs of one picture are too small to measure a link.
    def request(images):
        image = {"name": "image", "shape": [images, 1, 32, 32], "datatype": "FP32", "data": [0.5] * 1024 * images}
        return json.dumps({"inputs": [image]}).encode()

    one, batch = request(1), request(64)
    ends, requests = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        ask(f"http://{local['http']}/v2/models/lenet5/infer", one if requests % 10 else batch)
        requests += 1
        time.sleep(0.02)
    failed = []
    for title, expression in panels():
        found = query(at, expression)
        values = ", ".join(f"{float(series['value'][1]):.3g}" for series in found[:4])
        print(f"{'ok  ' if found else 'NONE'}  {title}: {len(found)} series ({values})")
        if not found:
            failed.append(f"panel {title!r} has no data: {expression}")
    for wrong in ("fcdcc_no_such_metric", 'fcdcc_layers_total{completion="no such way"}'):
        if query(at, wrong):
            failed.append(f"{wrong} has data")
    groups = json.loads(ask(f"{at}/api/v1/rules"))["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    failed += [f"rule {rule['name']} is {rule['health']}" for rule in rules if rule["health"] != "ok"]
    failed += [f"alert {rule['name']} fires where nothing is wrong" for rule in rules if rule["state"] == "firing"]
    print(f"{len(rules)} rules loaded, {requests} requests answered")
    if not rules:
        failed.append("no rule was loaded")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fcdcc")
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    missing = [program for program in ("prometheus", "promtool") if not shutil.which(program)]
    if missing:
        print(f"{' and '.join(missing)} missing: install Debian's package prometheus", file=sys.stderr)
        sys.exit(2)
    rules = os.path.join(MONITORING, "alerts.yml")
    subprocess.run(["promtool", "check", "rules", rules], check=True, timeout=60)
    started = []
    with tempfile.TemporaryDirectory(prefix="fcdcc-monitoring-") as folder:
        try:
            failed = check(os.path.abspath(given.fcdcc), folder, given.seconds, started)
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
            for process in started:
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
