"""What Python adds to a run: the time of a call less the time that the library measures for the run itself.

    python benches/overhead.py

prints medians and quartiles in microseconds. A call converts its arguments, prepares for signals (on the main thread), and
wraps the outputs. Models copy their inputs once; single layers read contiguous inputs
where they lie; outputs are not copied.
"""

import pathlib
import statistics
import threading
import time

import numpy as np

import fcdcc

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = 2000


def measure(call, own_seconds):
    """Quartiles of the microseconds that `call` takes beyond `own_seconds` of its result."""
    added = []
    for _ in range(RUNS):
        started = time.perf_counter()
        result = call()
        ended = time.perf_counter()
        added.append((ended - started - own_seconds(result)) * 1e6)
    return statistics.quantiles(added, n=4)


def show(what, call, own_seconds):
    for where in ("main thread", "other thread"):
        call()
        found = []
        if where == "main thread":
            found = measure(call, own_seconds)
        else:
            thread = threading.Thread(target=lambda found=found: found.extend(measure(call, own_seconds)))
            thread.start()
            thread.join()
        low, median, high = found
        print(f"{what:40} {where:13} {median:7.1f} us ({low:.1f} to {high:.1f})")


def main():
    rng = np.random.default_rng(0)
    pool = fcdcc.Pool.cpu(2)
    for size in (8, 128):
        x = rng.normal(size=(1, 4, size, size)).astype(np.float32)
        layer = fcdcc.CodedConv(pool, x.shape, rng.normal(size=(4, 4, 3, 3)).astype(np.float32), tolerate=1)
        own = layer._native
        what = f"layer, input of {x.nbytes / 1024:.0f} KiB"
        show(f"{what}, extension module", lambda own=own, x=x: own.run(x), lambda run: run[1].total_ms / 1e3)
        show(what, lambda layer=layer, x=x: layer.run(x), lambda run: run.total_ms / 1e3)
    model = fcdcc.Model(ROOT / "assets/digits/lenet5.onnx", shapes={"image": (1, 1, 32, 32)})
    prepared = model.prepare(pool, tolerate=1)
    image = rng.random((1, 1, 32, 32), dtype=np.float32)
    show("LeNet-5, by name", lambda: prepared.run({"image": image}), lambda run: run.total)


if __name__ == "__main__":
    main()
