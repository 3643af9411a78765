#!/usr/bin/env python3
"""Holds what `fcdcc run` estimates to need of memory against what it takes.

    python3 scripts/memory_estimates.py FOLDER [NAME ...] [-- OPTIONS OF fcdcc run]

FOLDER has NAME.onnx and NAME.input.npy for each network. Prints the estimate beside the measured peak (the largest resident
set, as the system gives it when the process has ended) and fails where they are further apart than the margin within which
nothing is refused. FCDCC names the binary (target/release/fcdcc).
"""
import os
import re
import subprocess
import sys

MARGIN = 1.3
# What a process takes that has loaded nothing: code, threads, the allocator's arenas. MiB, `fcdcc demo` apart.
PROCESS = 25


def run(command):
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}: {said}")
    return said, usage.ru_maxrss / 1024


def main():
    given = sys.argv[1:]
    options = []
    if "--" in given:
        given, options = given[: given.index("--")], given[given.index("--") + 1 :]
    if not given:
        sys.exit(__doc__)
    folder, names = given[0], given[1:]
    names = names or sorted(file[:-5] for file in os.listdir(folder) if file.endswith(".onnx"))
    binary = os.environ.get("FCDCC", "target/release/fcdcc")
    print(f"{'network':16} {'estimate':>9} {'measured':>9}  ratio   MiB")
    far = []
    for name in names:
        path = os.path.join(folder, name)
        command = [binary, "run", f"{path}.onnx", "--input", f"{path}.input.npy", "--backend", "cpu", "-q", "-v"]
        said, measured = run(command + options)
        said = re.sub(r"\x1b\[[0-9;]*m", "", said)
        estimate = int(re.findall(r"estimated_bytes=(\d+)", said)[-1]) / 2**20 + PROCESS
        ratio = estimate / measured
        print(f"{name:16} {estimate:9.0f} {measured:9.0f}  {ratio:5.2f}", flush=True)
        if not 1 / MARGIN <= ratio <= MARGIN:
            far.append(name)
    if far:
        sys.exit(f"further apart than {MARGIN}: {', '.join(far)}")


if __name__ == "__main__":
    main()
