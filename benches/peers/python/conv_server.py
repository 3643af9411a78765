"""The benchmark's requests about single convolution layers, see `answers.py` for how they travel.

A module that serves an engine gives `serve` a function that makes a layer ready: an object with `run()`, which returns
the output as an array, `time(calls, span, clock)`, which returns the seconds of each call, and `note`, what is worth
knowing about it.
"""
import statistics
import time

import numpy as np

import answers

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def serve(about, load):
    loaded = None

    def load_layer(request, payload):
        nonlocal loaded
        loaded = None
        numbers = np.frombuffer(payload, dtype="<f4")
        x = numbers[: request["input_elems"]].reshape(request["input"])
        w = numbers[request["input_elems"] :].reshape(request["weight"])
        loaded = load(request, x, w)
        return {"note": loaded.note}, b""

    def run(request, payload):
        return {}, np.ascontiguousarray(loaded.run(), dtype="<f4").tobytes()

    def seconds(request, payload):
        each = loaded.time(request["calls"], request["span"], CLOCKS[request["clock"]])
        return {"seconds": statistics.median(each)}, b""

    answers.serve(about, {"load": load_layer, "run": run, "time": seconds})


def each_call(calls, clock, call):
    """Seconds of each of `calls` calls."""
    seconds = []
    for _ in range(calls):
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return seconds
