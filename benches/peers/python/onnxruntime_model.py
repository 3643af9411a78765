"""A whole model in onnxruntime's CPU provider, for the comparison of whole models; `answers.py` says how requests travel.

Which configuration is fastest depends on the model, so each is tried first and the best one is kept. Only the kept
session and one candidate exist at a time: sessions hold a copy of the weights.
"""
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort

import answers

# Layouts in blocks of channels, or plain ones.
LEVELS = {
    "blocked": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "plain": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
# Calls of each candidate that decide between them, after WARM_UP calls.
TRIALS = 5
WARM_UP = 2


class Candidate:
    def __init__(self, path, x, threads, level, spin):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = LEVELS[level]
        options.log_severity_level = 3
        # Threads never spin between calls: other engines compute then.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.note = level + (", spinning within calls" if spin else "")
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise ValueError(f"the model has {len(inputs)} inputs instead of 1")
        self.input_name = inputs[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]
        # Input and outputs lie in memory of their own, so that a call copies nothing.
        self.binding = self.session.io_binding()
        self.binding.bind_ortvalue_input(self.input_name, ort.OrtValue.ortvalue_from_numpy(x))
        self.values = []
        for name, example in zip(self.outputs, self.run(x)):
            value = ort.OrtValue.ortvalue_from_shape_and_type(list(example.shape), example.dtype)
            self.binding.bind_ortvalue_output(name, value)
            self.values.append(value)

    def run(self, x):
        """The outputs of `x`, outside the binding."""
        return self.session.run(self.outputs, {self.input_name: x})

    def call(self):
        self.session.run_with_iobinding(self.binding)

    def time(self, calls):
        """The wall seconds of each call, and the processor seconds of the process per call."""
        wall = []
        begin = time.process_time()
        for _ in range(calls):
            start = time.perf_counter()
            self.call()
            wall.append(time.perf_counter() - start)
        return wall, (time.process_time() - begin) / calls


def peak_bytes():
    """The largest resident memory since `forget_peak`, or None where the system does not tell."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def forget_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # Then the peak includes loading.


class Model:
    """The best candidate."""

    def __init__(self, request, payload):
        self.x = np.frombuffer(payload, dtype="<f4").reshape(request["input"]).copy()
        threads = request["threads"]
        best = None
        for level in LEVELS:
            for spin in [False, True] if threads > 1 else [False]:
                candidate = Candidate(request["path"], self.x, threads, level, spin)
                candidate.time(WARM_UP)
                seconds = statistics.median(candidate.time(TRIALS)[0])
                if best is None or seconds < best[0]:
                    best = seconds, candidate
                del candidate
        self.best = best[1]

    def outputs(self, arrays):
        arrays = [np.ascontiguousarray(array, dtype="<f4") for array in arrays]
        return {"lengths": [array.size for array in arrays]}, b"".join(array.tobytes() for array in arrays)


def main():
    model = None

    def load(request, payload):
        nonlocal model
        model = None
        model = Model(request, payload)
        forget_peak()
        return {"note": model.best.note}, b""

    def run(request, payload):
        model.best.call()
        return model.outputs([value.numpy() for value in model.best.values])

    def run_reversed(request, payload):
        """The result of another input: what a comparison has to refuse."""
        return model.outputs(model.best.run(np.ascontiguousarray(model.x[..., ::-1])))

    def timed(request, payload):
        wall, processor = model.best.time(request["calls"])
        return {"wall": wall, "processor": processor}, b""

    def peak(request, payload):
        return {"peak_bytes": peak_bytes()}, b""

    commands = {"load": load, "run": run, "run_reversed": run_reversed, "time": timed, "peak": peak}
    version = ".".join(str(part) for part in sys.version_info[:3])
    answers.serve(lambda: f"onnxruntime {ort.__version__} (Python {version}, numpy {np.__version__})", commands)


if __name__ == "__main__":
    main()
