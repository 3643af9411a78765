"""Answers the requests of the benchmark over stdin and stdout, one convolution layer at a time.

A request is a line of JSON followed by as many bytes as its "bytes" says, an answer likewise. A module that serves an
engine gives `serve` a function that makes a layer ready: an object with `run()`, which returns the output as an array,
`time(calls, span, clock)`, which returns the seconds of each call, and `note`, what is worth knowing about it.

The process ends when its stdin does.
"""
import json
import os
import statistics
import sys
import time

import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


def serve(about, load):
    requests = sys.stdin.buffer
    # Libraries that print must not do it between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(header, payload=b""):
        answers.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n")
        answers.write(payload)
        answers.flush()

    loaded = None
    for line in requests:
        request = json.loads(line)
        payload = requests.read(request.get("bytes", 0))
        try:
            command = request["command"]
            if command == "about":
                answer({"ok": True, "note": about()})
            elif command == "load":
                loaded = None
                numbers = np.frombuffer(payload, dtype="<f4")
                x = numbers[: request["input_elems"]].reshape(request["input"])
                w = numbers[request["input_elems"] :].reshape(request["weight"])
                loaded = load(request, x, w)
                answer({"ok": True, "note": loaded.note})
            elif command == "run":
                answer({"ok": True}, np.ascontiguousarray(loaded.run(), dtype="<f4").tobytes())
            elif command == "time":
                seconds = loaded.time(request["calls"], request["span"], CLOCKS[request["clock"]])
                answer({"ok": True, "seconds": statistics.median(seconds)})
            elif command == "hang":  # The self-test's: an engine that never answers.
                time.sleep(3600)
            else:
                answer({"ok": False, "error": f"unknown command {command!r}"})
        except Exception as error:  # Whatever an engine says belongs into the report.
            answer({"ok": False, "error": f"{type(error).__name__}: {error}"[:500]})


def each_call(calls, clock, call):
    """Seconds of each of `calls` calls."""
    seconds = []
    for _ in range(calls):
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return seconds
