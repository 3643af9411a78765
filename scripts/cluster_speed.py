#!/usr/bin/env python3
"""Times whole models over a cluster whose links are slow: a master and four machines, each in a network namespace.

    sudo python3 scripts/cluster_speed.py FCDCC MODEL.onnx... [--rate 1gbit] [--wire f16] [--auto] [--in-flight 1,4]
        [--objective throughput] [--pace 0.25] [--missing] [--kill]

FCDCC is the command, built with `--features full`. Needs root, `ip` and `tc` (iproute2), `openssl`, and a Python with numpy.

Every machine, the master's too, is connected to one switch by a link that is limited to --rate in each direction. Each
machine lends two devices, so n is 8. `fcdcc serve` runs on the master, and a client beside it sends requests over
loopback: one after the other, then several at a time. Answers are compared with those of one machine, whose eight devices
are threads on the same processors; so is the time. The bytes are those that the kernel counts at the master's link,
headers and acknowledgements included.

With --pace every machine, the master's too, has that share of a core and no more (control groups, version 1 or 2), so that
machines which run on the same cores do not slow each other down. With --objective the planner may also place parts of the
model whole on workers.

Printed for each model: seconds a request (median), bytes up and down, what these bytes alone take on the link, the
seconds on one machine, and the ratio of the first to the sum of the latter two. With several requests in flight: how many
times as many are answered per second as with one, and as one machine answers one after the other. Exit code 1 if an answer is wrong, 2 if something is missing.
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MACHINES = ["w1", "w2", "w3", "w4"]
DEVICES = 2
START_S = 120
REQUEST_S = 300
# Relative L2 error by wire format: f32 sums in another order; the defaults of the windowwise limit in docs/cluster.md.
TOLERANCE = {"f32": 1e-4, "f16": 4e-2, "bf16": 0.3}
UNITS = {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3}


def bits_per_second(rate):
    for unit, factor in UNITS.items():
        if rate.endswith(unit):
            return float(rate[: -len(unit)]) * factor
    raise argparse.ArgumentTypeError(f"{rate} is no rate: write 1gbit or 100mbit")


def said(*command):
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if out.returncode:
        raise RuntimeError(f"{' '.join(command)}: {out.stderr.strip()}")
    return out.stdout


class Net:
    """A switch and a namespace for each machine, all links limited to a rate."""

    def __init__(self, rate):
        self.prefix = f"fcdcc-{os.getpid()}"
        self.names = ["master", *MACHINES]
        self.hub = f"{self.prefix}-hub"
        said("ip", "netns", "add", self.hub)
        said("ip", "-n", self.hub, "link", "add", "name", "switch", "type", "bridge")
        said("ip", "-n", self.hub, "link", "set", "switch", "up")
        for index, name in enumerate(self.names):
            own = f"{self.prefix}-{name}"
            said("ip", "netns", "add", own)
            said("ip", "-n", self.hub, "link", "add", "name", name, "type", "veth", "peer", "name", "cable", "netns", own)
            said("ip", "-n", self.hub, "link", "set", "dev", name, "master", "switch", "up")
            said("ip", "-n", own, "address", "add", f"10.78.0.{index + 1}/24", "dev", "cable")
            said("ip", "-n", own, "link", "set", "cable", "up")
            said("ip", "-n", own, "link", "set", "lo", "up")
            if rate:
                # A bucket of 1 ms at 1 Gbit/s, and a queue of 50 ms, as switches have.
                burst = max(16, int(bits_per_second(rate) / 8 / 1000 / 1024))
                for space, device in [(self.hub, name), (own, "cable")]:
                    said("tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                         "burst", f"{burst}kb", "latency", "50ms")

    def command(self, name, *command):
        return ["ip", "netns", "exec", f"{self.prefix}-{name}", *command]

    def bytes(self):
        """Bytes that the master has sent and received over its link."""
        link = json.loads(said("ip", "-s", "-j", "-n", f"{self.prefix}-master", "link", "show", "cable"))[0]["stats64"]
        return link["tx"]["bytes"], link["rx"]["bytes"]

    def close(self):
        for name in [*self.names, "hub"]:
            subprocess.run(["ip", "netns", "delete", f"{self.prefix}-{name}"], capture_output=True, timeout=60)


class Pace:
    """Control groups, each of which has a share of a core."""

    # Shorter than what the planner measures, and a share of it is at least the millisecond that Linux demands.
    PERIOD_US = 4_000

    def __init__(self, share):
        version_2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self.root = "/sys/fs/cgroup" if version_2 else "/sys/fs/cgroup/cpu"
        quota = int(share * self.PERIOD_US)
        self.limits = ({"cpu.max": f"{quota} {self.PERIOD_US}"} if version_2 else
                       {"cpu.cfs_period_us": str(self.PERIOD_US), "cpu.cfs_quota_us": str(quota)})
        self.groups = []

    def group(self, name):
        """The file that takes the processes of a machine."""
        group = os.path.join(self.root, f"fcdcc-{os.getpid()}-{name}")
        if group not in self.groups:
            os.mkdir(group)
            self.groups.append(group)
            for limit, value in self.limits.items():
                with open(os.path.join(group, limit), "w") as file:
                    file.write(value)
        return os.path.join(group, "cgroup.procs")

    def close(self):
        for group in self.groups:
            try:
                os.rmdir(group)
            except OSError as error:
                print(f"{group} is left behind: {error}", file=sys.stderr)


class Process:
    # Rates that were measured without a pace are not those of a slow machine.
    environment = None

    def __init__(self, command, log, group=None):
        self.log = log
        if group:
            # The shell enters the group, and its process becomes the command.
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', group, *command]
        self.child = subprocess.Popen(command, stdout=open(log, "wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                      env=self.environment)

    def text(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def end(self):
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Client:
    """Sends one input to a served model as raw bytes (Open Inference Protocol v2) and returns the first output."""

    def __init__(self, connect, model):
        self.connect = connect
        self.connection = self.fresh()
        self.model = model
        self.about = json.loads(self.ask("GET", f"/v2/models/{model}"))

    def fresh(self):
        connection = http.client.HTTPConnection("localhost", timeout=REQUEST_S)
        connection.sock = self.connect()
        return connection

    def ask(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        answer = self.connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {data[:500]!r}")
        self.length = answer.getheader("Inference-Header-Content-Length")
        return data

    def infer(self, value):
        first = self.about["inputs"][0]["name"]
        output = self.about["outputs"][0]["name"]
        raw = value.tobytes()
        head = json.dumps({
            "inputs": [{"name": first, "shape": list(value.shape), "datatype": "FP32",
                        "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": output, "parameters": {"binary_data": True}}],
        }).encode()
        data = self.ask("POST", f"/v2/models/{self.model}/infer", head + raw, {
            "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))})
        return np.frombuffer(data[int(self.length):], np.float32)


def inside(net, name):
    """A function that connects to the server from within a namespace."""
    def connect():
        # The socket belongs to the namespace in which it was made; it is passed back by a child.
        ours, theirs = socket.socketpair()
        code = ("import socket,array,sys;s=socket.create_connection(('127.0.0.1',8000));"
                "c=socket.socket(fileno=int(sys.argv[1]));socket.send_fds(c,[b'x'],[s.fileno()])")
        subprocess.run(net.command(name, sys.executable, "-c", code, str(theirs.fileno())), check=True, timeout=60,
                       pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
        _, handles, _, _ = socket.recv_fds(ours, 1, 1)
        ours.close()
        theirs.close()
        return socket.socket(fileno=handles[0])
    return connect


def wait_ready(connect, models, process):
    ends = time.monotonic() + START_S
    last = None
    while time.monotonic() < ends:
        if process.child.poll() is not None:
            sys.exit(f"fcdcc serve ended:\n{process.text()}")
        try:
            return [Client(connect, model) for model in models]
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            last = error
            time.sleep(0.3)
    sys.exit(f"fcdcc serve is not ready within {START_S} s ({last}):\n{process.text()}")


def load(connect, model, value, want, tolerance, in_flight, requests):
    """Seconds of each request, and of all; the largest error."""
    seconds, errors, problems = [], [], []
    lock = threading.Lock()

    def one(client, count):
        try:
            for _ in range(count):
                began = time.perf_counter()
                got = client.infer(value)
                took = time.perf_counter() - began
                with lock:
                    seconds.append(took)
                    if want is not None:
                        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
        except Exception as error:  # noqa: BLE001: reported below
            problems.append(error)

    clients = [Client(connect, model) for _ in range(in_flight)]
    threads = [threading.Thread(target=one, args=(client, requests)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        sys.exit(f"{model}: {problems[0]}")
    if errors and max(errors) > tolerance:
        sys.exit(f"{model}: WRONG by {max(errors):.2e}")
    return seconds, time.perf_counter() - began, max(errors, default=0.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fcdcc")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rate", default="1gbit")
    parser.add_argument("--wire", default="f32", choices=TOLERANCE)
    parser.add_argument("--auto", action="store_true", help="let the planner leave layers on the master")
    parser.add_argument("--objective", choices=["latency", "throughput"],
                        help="let it place parts of the model whole on workers as well; implies --auto")
    parser.add_argument("--pace", type=float, help="share of a core that every machine has")
    parser.add_argument("--in-flight", default="1,4", help="numbers of requests at a time")
    parser.add_argument("--requests", type=int, default=7, help="requests a client")
    parser.add_argument("--missing", action="store_true", help="the last machine is not there from the start")
    parser.add_argument("--kill", action="store_true", help="the first machine is killed in the middle of a request")
    parser.add_argument("--serve", default="", help="further options of fcdcc serve")
    parser.add_argument("--keep", help="folder for logs, not deleted")
    args = parser.parse_args()
    if os.geteuid() or not (shutil.which("tc") and shutil.which("ip")):
        print("needs root, ip and tc", file=sys.stderr)
        return 2
    folder = args.keep or tempfile.mkdtemp(prefix="fcdcc-speed-")
    os.makedirs(folder, exist_ok=True)
    processes, net = [], None
    pace = Pace(args.pace) if args.pace else None
    group = pace.group if pace else lambda name: None
    if pace:
        Process.environment = {**os.environ, "XDG_CACHE_HOME": os.path.join(folder, "cache")}
    planned = ["--auto"] if args.auto or args.objective else []
    planned += ["--objective", args.objective] if args.objective else []
    try:
        said(os.path.join(ROOT, "scripts", "dev_ca.sh"), os.path.join(folder, "certs"), "master:10.78.0.1", *MACHINES)
        names = [os.path.splitext(os.path.basename(path))[0] for path in args.models]
        net = Net(args.rate)
        with open(os.path.join(folder, "pool.toml"), "w") as file:
            tls = 'ca = "certs/ca.pem", certificate = "certs/master.pem", key = "certs/master.key"'
            file.write(f'[cluster]\nlisten = "0.0.0.0"\nwire = "{args.wire}"\ntls = {{ {tls} }}\n')
            file.writelines(f'[[worker]]\nkind = "remote"\nname = "{name}"\n' for name in MACHINES)
        most = max(int(count) for count in args.in_flight.split(","))
        serve = [args.fcdcc, "serve", *args.models, "--http", "127.0.0.1:8000", "--grpc", "off", "--threads", str(most),
                 "--workers", str(len(MACHINES) * DEVICES), *args.serve.split()]
        # One machine.
        one = Process(net.command("master", *serve, "--backend", "cpu", *planned[:1]), os.path.join(folder, "one.log"),
                      group("one"))
        processes.append(one)
        connect = inside(net, "master")
        alone = {}
        for client in wait_ready(connect, names, one):
            shape = [max(1, size) for size in client.about["inputs"][0]["shape"]]
            value = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
            want = client.infer(value)
            seconds, _, _ = load(connect, client.model, value, want, 1e-4, 1, args.requests)
            alone[client.model] = (value, want, statistics.median(seconds))
        processes.remove(one)
        one.end()
        workers = {}
        for name in MACHINES[: len(MACHINES) - args.missing]:
            certs = os.path.join(folder, "certs")
            worker = net.command(name, args.fcdcc, "worker", "--connect", "10.78.0.1", "--name", name, "--workers", str(DEVICES),
                                 "--ca", f"{certs}/ca.pem", "--certificate", f"{certs}/{name}.pem", "--key",
                                 f"{certs}/{name}.key")
            workers[name] = Process(worker, os.path.join(folder, f"{name}.log"), group(name))
            processes.append(workers[name])
        master = Process(net.command("master", *serve, "--pool", os.path.join(folder, "pool.toml"), *planned),
                         os.path.join(folder, "master.log"), group("master"))
        processes.append(master)
        bits = bits_per_second(args.rate)
        print(f"links of {args.rate}, wire {args.wire}{', ' + ' '.join(planned) if planned else ''}: seconds a request")
        print(f"{'model':<12} {'seconds':>8} {'up MB':>7} {'down MB':>8} {'bytes s':>8} {'one s':>7} {'ratio':>6}  error")
        for client in wait_ready(connect, names, master):
            model = client.model
            value, want, alone_s = alone[model]
            rates = {}
            if args.kill and workers[MACHINES[0]].child.poll() is None:
                threading.Timer(alone_s, workers[MACHINES[0]].child.kill).start()
                _, took, error = load(connect, model, value, want, TOLERANCE[args.wire], 1, 1)
                print(f"{model:<12} {took:8.3f} while {MACHINES[0]} is killed; {error:.1e}", flush=True)
            for in_flight in [int(count) for count in args.in_flight.split(",")]:
                load(connect, model, value, want, TOLERANCE[args.wire], in_flight, 1)
                before = net.bytes()
                seconds, total, error = load(connect, model, value, want, TOLERANCE[args.wire], in_flight, args.requests)
                after = net.bytes()
                up, down = ((a - b) / len(seconds) for a, b in zip(after, before))
                median = statistics.median(seconds)
                rates[in_flight] = len(seconds) / total
                if in_flight == 1:
                    moved = 8 * (up + down) / bits
                    print(f"{model:<12} {median:8.3f} {up / 1e6:7.1f} {down / 1e6:8.1f} {moved:8.3f} {alone_s:7.3f} "
                          f"{median / (moved + alone_s):6.2f}  {error:.1e}", flush=True)
                else:
                    print(f"{'':<12} {in_flight} in flight: {rates[in_flight]:.2f} a second"
                          + (f", {rates[in_flight] / rates[1]:.2f} times one" if 1 in rates else "")
                          + f", {rates[in_flight] * alone_s:.2f} times one machine"
                          + f"; {up / 1e6:.1f} + {down / 1e6:.1f} MB each, {error:.1e}", flush=True)
    finally:
        for process in processes:
            process.end()
        if net:
            net.close()
        if pace:
            pace.close()
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
