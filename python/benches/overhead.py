"""What Python adds to a run: the time of a call less the time that the same call takes in Rust.

    python benches/overhead.py

prints medians and quartiles in microseconds, and beside them the median of the call in Rust, which the extension module
measures: for a model that of `PreparedModel::run_views`, for a layer that of `CodedConv::run_cancellable`. A call in Python
finds the arrays and the memory they lie in, prepares for signals (on the main thread), releases the interpreter's lock, takes
it again and wraps the outputs. Freeing outputs and reports is part of neither.
"""

import pathlib
import statistics
import sys
import threading
import time

import numpy as np

import fcdcc

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = 2000


def measure(call, runs):
    """Microseconds that each call takes beyond the call in Rust, and those in Rust."""
    added, rust = [], []
    for _ in range(runs):
        started = time.perf_counter()
        result = call()
        ended = time.perf_counter()
        own = result._native.call
        added.append((ended - started - own) * 1e6)
        rust.append(own * 1e6)
        del result
    return added, rust


def show(what, call, runs=RUNS):
    for where in ("main thread", "other thread"):
        measure(call, 20)
        found = []
        if where == "main thread":
            found.append(measure(call, runs))
        else:
            thread = threading.Thread(target=lambda found=found: found.append(measure(call, runs)))
            thread.start()
            thread.join()
        added, rust = found[0]
        low, median, high = statistics.quantiles(added, n=4)
        print(f"{what:38} {where:13} {median:7.1f} us ({low:.1f} to {high:.1f}); in Rust {statistics.median(rust):.0f} us")


def main():
    print(f"fcdcc {fcdcc.__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}")
    rng = np.random.default_rng(0)
    pool = fcdcc.Pool.cpu(2)
    for size in (8, 128):
        x = rng.normal(size=(1, 4, size, size)).astype(np.float32)
        layer = fcdcc.CodedConv(pool, x.shape, rng.normal(size=(4, 4, 3, 3)).astype(np.float32), tolerate=1)
        show(f"layer, {x.nbytes >> 10} KiB", lambda layer=layer, x=x: layer.run(x))
    model = fcdcc.Model(ROOT / "assets/digits/lenet5.onnx")
    for count in (1, 64):
        prepared = model.prepare(pool, tolerate=1, shapes={"image": (count, 1, 32, 32)})
        images = rng.random((count, 1, 32, 32), dtype=np.float32)
        what, runs = f"LeNet-5, {images.nbytes >> 10} KiB", RUNS if count == 1 else RUNS // 10
        show(f"{what}, by name", lambda prepared=prepared, images=images: prepared.run({"image": images}), runs)
        twice = np.repeat(images, 2, axis=3)[..., ::2]
        show(f"{what}, strided (copied)", lambda prepared=prepared, twice=twice: prepared.run(twice), runs)
    prepared = model.prepare(pool, tolerate=1)
    show("LeNet-5, open sizes", lambda: prepared.run(images[:1]))


if __name__ == "__main__":
    main()
