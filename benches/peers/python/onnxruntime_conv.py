"""One convolution in onnxruntime's CPU provider, for the benchmark: a model of one Conv node with constant filters.

onnxruntime may rearrange the filters when the session is made; the layout of input and output is that of ONNX, so
conversions at the edges count. Its fastest configuration for such a layer depends on the layer, so the candidates
are timed against each other first and the best one stands for onnxruntime.
"""
import os

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from conv_server import CLOCKS, each_call, serve

# Blocked layouts (all) cost conversions around a single node that other levels do not need.
LEVELS = {
    "blocked": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "plain": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
# Calls of each candidate that decide between them; whole rounds, so that disturbances meet all of them.
TRIALS = 7


class Candidate:
    def __init__(self, model, x, y_shape, threads, pin, level, spin):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = LEVELS[level]
        options.log_severity_level = 3
        # Threads never spin between calls: other engines compute then.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if pin and threads > 1:
            # The calling thread is the first; processors count from 1 here.
            others = ";".join(str(processor + 1) for processor in range(1, threads))
            options.add_session_config_entry("session.intra_op_thread_affinities", others)
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        self.input = ort.OrtValue.ortvalue_from_numpy(x)
        self.output = ort.OrtValue.ortvalue_from_shape_and_type(y_shape, x.dtype)
        self.binding.bind_ortvalue_input("x", self.input)
        self.binding.bind_ortvalue_output("y", self.output)
        self.note = level + (", spinning within calls" if spin else "")

    def call(self):
        self.session.run_with_iobinding(self.binding)

    def run(self):
        self.call()
        return self.output.numpy()

    def time(self, calls, span, clock):
        return each_call(calls, clock, self.call)


def load(request, x, w):
    x = x.copy()
    pad, stride = request["padding"], request["stride"]
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], pads=[pad] * 4, strides=[stride] * 2, group=request["groups"]
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, request["input"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, request["output"])],
        [numpy_helper.from_array(w.copy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    threads, pin = request["threads"], request["pin"]
    if pin:
        # Threads inherit this, so it comes off before they are made.
        os.sched_setaffinity(0, range(os.cpu_count()))
    candidates = [
        Candidate(model.SerializeToString(), x, request["output"], threads, pin, level, spin)
        for level in LEVELS
        for spin in ([False, True] if threads > 1 else [False])
    ]
    if pin and threads > 1:
        os.sched_setaffinity(0, {0})
    clock = CLOCKS[request["clock"]]
    for candidate in candidates:
        candidate.time(2, None, clock)
    trials = [[] for _ in candidates]
    for _ in range(TRIALS):
        for candidate, seconds in zip(candidates, trials):
            seconds += candidate.time(1, None, clock)
    return min(zip(candidates, trials), key=lambda pair: sorted(pair[1])[TRIALS // 2])[0]


if __name__ == "__main__":
    serve(lambda: f"onnxruntime {ort.__version__}", load)
