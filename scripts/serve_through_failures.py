#!/usr/bin/env python3
"""The client of serve_through_failures.sh: sends requests, kills workers between and during them, compares every answer.

    serve_through_failures.py HTTP_ADDRESS GRPC_ADDRESS MODEL_REPOSITORY PROCESS_ID PROCESS_ID
"""

import os
import signal
import statistics
import sys
import threading
import time

import numpy as np
import onnxruntime
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http

# Relative L2 error of an answer: two orders of sums in f32 through fifty layers.
TOLERANCE = 1e-4
REQUESTS = {"lenet5": 300, "resnet50": 60}
INPUTS = 5


def session(path):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def error(got, want):
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


class Model:
    """A served model, its inputs, and the answers of onnxruntime."""

    def __init__(self, repository, name):
        self.name = name
        reference = session(os.path.join(repository, name, "1", "model.onnx"))
        first = reference.get_inputs()[0]
        self.input = first.name
        self.output = reference.get_outputs()[0].name
        shape = [axis if isinstance(axis, int) else 1 for axis in first.shape]
        random = np.random.default_rng(7)
        self.values = [random.standard_normal(shape, dtype=np.float32) for _ in range(INPUTS)]
        self.wanted = [reference.run([self.output], {self.input: value})[0] for value in self.values]

    def ask(self, library, client, index):
        tensor = library.InferInput(self.input, list(self.values[index].shape), "FP32")
        tensor.set_data_from_numpy(self.values[index])
        outputs = [library.InferRequestedOutput(self.output)]
        began = time.perf_counter()
        answer = client.infer(self.name, [tensor], outputs=outputs).as_numpy(self.output)
        return answer, (time.perf_counter() - began) * 1e3


def kill_during(process, call):
    """Kills a process a few milliseconds after a call began."""
    killer = threading.Timer(0.005, os.kill, (process, signal.SIGKILL))
    killer.start()
    result = call()
    killer.join()
    return result


def main():
    http, grpc, repository, *processes = sys.argv[1:]
    processes = [int(process) for process in processes]
    clients = [
        (over_http, over_http.InferenceServerClient(http, connection_timeout=60, network_timeout=60)),
        (over_grpc, over_grpc.InferenceServerClient(grpc)),
    ]
    models = [Model(repository, name) for name in REQUESTS]
    for model in models:
        other = error(model.wanted[1], model.wanted[0])
        assert other > 100 * TOLERANCE, f"{model.name}: a wrong answer would not be noticed ({other})"
        largest, phases = 0.0, [[], [], []]
        count = REQUESTS[model.name]
        # The second model meets the workers that the first one left alive, and loses one more.
        deaths = {count // 3: processes[0]} if model is models[0] else {count // 3: processes[1]}
        phase = 0
        for request in range(count):
            library, client = clients[request % 2]
            index = request % INPUTS
            if request in deaths:
                got, took = kill_during(deaths[request], lambda: model.ask(library, client, index))
                phases[1].append(took)
                phase = 2
            else:
                got, took = model.ask(library, client, index)
                phases[phase].append(took)
            largest = max(largest, error(got, model.wanted[index]))
            assert largest <= TOLERANCE, f"{model.name}, request {request}: error {largest:.1e}"
        before, during, after = phases
        print(
            f"{model.name}: {count} of {count} answers right, largest relative error {largest:.1e}; ms: median "
            f"{statistics.median(before):.1f} before, {during[0]:.1f} while a process of two workers was killed, median "
            f"{statistics.median(after):.1f} and at most {max(after):.1f} after"
        )
    for _, client in clients:
        client.close()


if __name__ == "__main__":
    main()
