#!/usr/bin/env python3
"""Trains LeNet-5 on the handwritten digits that scikit-learn ships, and checks the committed result.

    python3 scripts/train_lenet5.py [--out assets/digits] [--seed 1] [--epochs 40]
    python3 scripts/train_lenet5.py --validate [--seed ..] [--epochs ..]
    python3 scripts/train_lenet5.py --check [--out assets/digits]

The first form trains on 1347 images and writes OUT/lenet5.onnx, OUT/digits.npy and OUT/labels.npy, the latter
two being the 450 images that training never saw; then it checks them. The second trains on four fifths of the
1347, prints the accuracy on the remaining fifth and writes nothing: settings are chosen by it, never by the
held-out images. The third trains nothing: it verifies the files and exits with status 1 if anything is wrong
or accuracy is below 97 %.

Needs numpy, scikit-learn (for the data alone), onnx and onnxruntime.
"""
import argparse
import os
import sys
import time

# The matrices are small: threads gain little, and one thread makes repeated runs on one machine identical.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

HELD_OUT = 450
SPLIT_SEED = 1998  # apart from --seed, so that retraining never moves an image across the split
BATCH = 32
PEAK_RATE = 2e-3
LOWEST_ACCURACY = 0.97
HIGHEST_SHIFTED_ACCURACY = 0.30

CONVS = ("conv1", "conv2", "conv3")
SHAPES = {
    "conv1.weight": (6, 1, 5, 5), "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5), "conv2.bias": (16,),
    "conv3.weight": (120, 16, 5, 5), "conv3.bias": (120,),
    "fc1.weight": (84, 120), "fc1.bias": (84,),
    "fc2.weight": (10, 84), "fc2.bias": (10,),
}
NODES = [  # (name, operator, attributes), each reading what the one before it wrote
    ("conv1", "Conv", {"kernel_shape": [5, 5]}),
    ("relu1", "Relu", {}),
    ("pool1", "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("conv2", "Conv", {"kernel_shape": [5, 5]}),
    ("relu2", "Relu", {}),
    ("pool2", "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("conv3", "Conv", {"kernel_shape": [5, 5]}),
    ("relu3", "Relu", {}),
    ("flatten", "Flatten", {"axis": 1}),
    ("fc1", "Gemm", {"transB": 1}),
    ("relu4", "Relu", {}),
    ("fc2", "Gemm", {"transB": 1}),
]


# Data

def enlarge(digits):
    """[n, 8, 8] with values 0..16 to float32 [n, 1, 32, 32] with values 0..1, LeNet-5's input size.

    Values are divided by 16; then each axis is interpolated linearly by a factor of 4, with half-pixel
    centres and clamped edges: output pixel i samples the source at s = clamp((i + 0.5) / 4 - 0.5, 0, 7)
    and is (1 - f) * source[j] + f * source[min(j + 1, 7)] with j = floor(s), f = s - j.

    Every f is a multiple of 1/8 and every value one of 1/16, so all results are multiples of 1/1024: float32
    holds them and every intermediate exactly, and any order of evaluation gives the same bits.
    """
    source = np.clip((np.arange(32) + 0.5) / 4 - 0.5, 0, 7)
    low = np.floor(source).astype(int)
    fraction = source - low
    matrix = np.zeros((32, 8), np.float32)
    np.add.at(matrix, (np.arange(32), low), 1 - fraction)
    np.add.at(matrix, (np.arange(32), np.minimum(low + 1, 7)), fraction)
    values = np.asarray(digits, np.float32) / np.float32(16)
    return (matrix @ values @ matrix.T)[:, None]


def stratified_split(labels, count, seed):
    """Indices (kept, taken), both ascending, with `count` taken in proportion to each label's frequency."""
    # RandomState's stream is frozen by numpy's policy, default_rng's is not.
    random = np.random.RandomState(seed)
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    quota = np.floor(exact).astype(int)
    largest_remainders = np.argsort(quota - exact, kind="stable")[:count - quota.sum()]
    quota[largest_remainders] += 1
    taken = np.sort(np.concatenate([
        random.permutation(np.flatnonzero(labels == label))[:quota[label]] for label in range(len(sizes))
    ]))
    return np.setdiff1d(np.arange(len(labels)), taken), taken


def load_split():
    """(training digits, their labels, held-out digits, their labels), all uint8."""
    data = load_digits()
    digits, labels = data.images.astype(np.uint8), data.target.astype(np.uint8)
    kept, taken = stratified_split(labels, HELD_OUT, SPLIT_SEED)
    return digits[kept], labels[kept], digits[taken], labels[taken]


def jitter(images, random):
    """Every image turned up to 12 degrees, scaled by up to a tenth and moved up to 2 pixels, zero outside."""
    n, _, size, _ = images.shape
    angle = random.uniform(-np.pi / 15, np.pi / 15, (n, 1, 1))
    scale = random.uniform(0.9, 1.1, (n, 1, 1))
    shift = random.uniform(-2, 2, (2, n, 1, 1))
    centre = (size - 1) / 2
    row, column = np.meshgrid(np.arange(size) - centre, np.arange(size) - centre, indexing="ij")
    y = (np.cos(angle) * row - np.sin(angle) * column) * scale + shift[0] + centre
    x = (np.sin(angle) * row + np.cos(angle) * column) * scale + shift[1] + centre
    # A frame of zeros, to whose outer edge coordinates are clamped, makes everything outside the image zero.
    framed = np.pad(images[:, 0], ((0, 0), (1, 1), (1, 1)))
    y, x = np.clip(y + 1, 0, size + 1), np.clip(x + 1, 0, size + 1)
    top, left = np.minimum(y.astype(int), size), np.minimum(x.astype(int), size)
    down, right = y - top, x - left
    i = np.arange(n)[:, None, None]
    upper = framed[i, top, left] * (1 - right) + framed[i, top, left + 1] * right
    lower = framed[i, top + 1, left] * (1 - right) + framed[i, top + 1, left + 1] * right
    return (upper * (1 - down) + lower * down).astype(np.float32)[:, None]


# Network: forward functions return (output, what the backward function needs)

def conv_forward(x, weight, bias):
    k = weight.shape[2]
    windows = sliding_window_view(x, (k, k), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    n, rows, columns = windows.shape[:3]
    patches = windows.reshape(n * rows * columns, -1)
    y = patches @ weight.reshape(len(weight), -1).T + bias
    return y.reshape(n, rows, columns, -1).transpose(0, 3, 1, 2), (x.shape, patches, weight)


def conv_backward(grad, saved, need_input=True):
    shape, patches, weight = saved
    n, out, rows, columns = grad.shape
    grad = grad.transpose(0, 2, 3, 1).reshape(-1, out)
    grad_weight, grad_bias = (grad.T @ patches).reshape(weight.shape), grad.sum(axis=0)
    if not need_input:
        return None, grad_weight, grad_bias
    k = weight.shape[2]
    spread = (grad @ weight.reshape(out, -1)).reshape(n, rows, columns, shape[1], k, k)
    grad_x = np.zeros(shape, np.float32)
    for i in range(k):
        for j in range(k):
            grad_x[:, :, i:i + rows, j:j + columns] += spread[..., i, j].transpose(0, 3, 1, 2)
    return grad_x, grad_weight, grad_bias


def pool_forward(x):
    n, channels, rows, columns = x.shape
    blocks = x.reshape(n, channels, rows // 2, 2, columns // 2, 2)
    y = blocks.max(axis=(3, 5))
    return y, (blocks == y[:, :, :, None, :, None])


def pool_backward(grad, chosen):
    # Flat regions tie; sharing the gradient keeps its sum right.
    share = grad[:, :, :, None, :, None] / chosen.sum(axis=(3, 5), keepdims=True, dtype=np.float32)
    n, channels, rows, _, columns, _ = chosen.shape
    return (share * chosen).reshape(n, channels, 2 * rows, 2 * columns)


def forward(params, x):
    saved = {}
    for name in CONVS:
        x, saved[name] = conv_forward(x, params[name + ".weight"], params[name + ".bias"])
        x = np.maximum(x, 0)
        saved[name + ".relu"] = x > 0
        if name != "conv3":
            x, saved[name + ".pool"] = pool_forward(x)
    saved["flat"] = x.reshape(len(x), -1)
    saved["hidden"] = np.maximum(saved["flat"] @ params["fc1.weight"].T + params["fc1.bias"], 0)
    return saved["hidden"] @ params["fc2.weight"].T + params["fc2.bias"], saved


def loss_and_gradients(params, images, labels):
    """Mean cross entropy, its gradients, and how many images were classified right."""
    logits, saved = forward(params, images)
    rows = np.arange(len(labels))
    log_softmax = logits - logits.max(axis=1, keepdims=True)
    log_softmax -= np.log(np.exp(log_softmax).sum(axis=1, keepdims=True))
    grad = np.exp(log_softmax)
    grad[rows, labels] -= 1
    grad /= np.float32(len(labels))

    grads = {"fc2.weight": grad.T @ saved["hidden"], "fc2.bias": grad.sum(axis=0)}
    grad = (grad @ params["fc2.weight"]) * (saved["hidden"] > 0)
    grads |= {"fc1.weight": grad.T @ saved["flat"], "fc1.bias": grad.sum(axis=0)}
    grad = (grad @ params["fc1.weight"]).reshape(len(images), -1, 1, 1)
    for name in reversed(CONVS):
        if name != "conv3":
            grad = pool_backward(grad, saved[name + ".pool"])
        grad = grad * saved[name + ".relu"]
        grad, weight, bias = conv_backward(grad, saved[name], need_input=name != "conv1")
        grads |= {name + ".weight": weight, name + ".bias": bias}
    return -log_softmax[rows, labels].mean(), grads, int((logits.argmax(axis=1) == labels).sum())


def he_init(random):
    return {
        name: np.zeros(shape, np.float32) if name.endswith("bias")
        else (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def train(images, labels, seed, epochs):
    """Adam with a cosine decay of its rate to zero, on freshly jittered images each epoch."""
    random = np.random.RandomState(seed)
    params = he_init(random)
    mean = {name: np.zeros_like(p) for name, p in params.items()}
    square = {name: np.zeros_like(p) for name, p in params.items()}
    starts = range(0, len(images), BATCH)
    step, total = 0, epochs * len(starts)
    for epoch in range(epochs):
        order = random.permutation(len(images))
        losses = right = 0
        for start in starts:
            batch = order[start:start + BATCH]
            loss, grads, correct = loss_and_gradients(params, jitter(images[batch], random), labels[batch])
            losses, right = losses + loss * len(batch), right + correct
            rate = PEAK_RATE * (1 + np.cos(np.pi * step / total)) / 2
            step += 1
            unbias = rate * np.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step)
            for name, grad in grads.items():
                mean[name] += np.float32(0.1) * (grad - mean[name])
                square[name] += np.float32(0.001) * (grad * grad - square[name])
                params[name] -= np.float32(unbias) * mean[name] / (np.sqrt(square[name]) + np.float32(1e-8))
        print(f"epoch {epoch + 1:3}/{epochs}: loss {losses / len(images):.4f}, "
              f"accuracy on jittered training images {right / len(images):.2%}", flush=True)
    return params


# Model file

def build_model(params):
    nodes, value = [], "image"
    for name, operator, attributes in NODES:
        output = "logits" if name == NODES[-1][0] else name + ".out"
        weights = [name + ".weight", name + ".bias"] if operator in ("Conv", "Gemm") else []
        nodes.append(helper.make_node(operator, [value, *weights], [output], name=name, **attributes))
        value = output
    graph = helper.make_graph(
        nodes, "lenet5",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(params[name]), name) for name in SHAPES],
    )
    model = helper.make_model(graph, producer_name="fcdcc train_lenet5", ir_version=9,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def run_model(serialized, images):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


# Commands

def validate(seed, epochs):
    digits, labels, _, _ = load_split()
    kept, taken = stratified_split(labels, len(labels) // 5, SPLIT_SEED)
    params = train(enlarge(digits[kept]), labels[kept], seed, epochs)
    right = int((forward(params, enlarge(digits[taken]))[0].argmax(axis=1) == labels[taken]).sum())
    print(f"validation: {right} of {len(taken)} right ({right / len(taken):.2%})")


def train_and_write(out, seed, epochs):
    digits, labels, held_digits, held_labels = load_split()
    started = time.monotonic()
    params = train(enlarge(digits), labels, seed, epochs)
    print(f"trained on {len(labels)} images in {time.monotonic() - started:.0f} s")
    model = build_model(params)
    images = enlarge(held_digits)
    difference = np.abs(run_model(model, images) - forward(params, images)[0]).max()
    if not difference < 1e-3:
        sys.exit(f"onnxruntime's logits differ from the training code's by {difference}: nothing written")
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "lenet5.onnx"), "wb") as f:
        f.write(model)
    for name, array in (("digits", held_digits), ("labels", held_labels)):
        with open(os.path.join(out, name + ".npy"), "wb") as f:
            np.lib.format.write_array(f, np.ascontiguousarray(array), version=(1, 0))


def read_npy(path):
    """The array and whether its file is of version 1.0 and in C order."""
    with open(path, "rb") as f:
        plain = np.lib.format.read_magic(f) == (1, 0) and not np.lib.format.read_array_header_1_0(f)[1]
    return np.load(path, allow_pickle=False), plain


def shape_of(value):
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def check(out):
    failures = 0

    def report(holds, text):
        nonlocal failures
        failures += not holds
        print("ok    " if holds else "FAILED", text)

    _, _, held_digits, held_labels = load_split()
    digits, plain_digits = read_npy(os.path.join(out, "digits.npy"))
    labels, plain_labels = read_npy(os.path.join(out, "labels.npy"))
    report(plain_digits and plain_labels, "digits.npy and labels.npy are of version 1.0, in C order")
    for name, array, shape in (("digits", digits, (HELD_OUT, 8, 8)), ("labels", labels, (HELD_OUT,))):
        report(array.dtype == np.uint8 and array.shape == shape, f"{name}: {array.dtype} {array.shape}")
    report(np.array_equal(digits, held_digits), "the images are exactly those held out by the split")
    report(np.array_equal(labels, held_labels), "so are the labels")

    with open(os.path.join(out, "lenet5.onnx"), "rb") as f:
        serialized = f.read()
    model = onnx.load_from_string(serialized)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    opsets = [(o.domain, o.version) for o in model.opset_import]
    report(model.ir_version == 9 and opsets == [("", 17)],
           f"model: IR version {model.ir_version}, opsets {opsets}, {len(serialized)} bytes")
    nodes = [
        (n.name, n.op_type, {a.name: helper.get_attribute_value(a) for a in n.attribute}) for n in graph.node
    ]
    report(nodes == NODES, "nodes: " + " ".join(name for name, _, _ in nodes))
    interface = [(v.name, shape_of(v)) for v in (*graph.input, *graph.output)]
    report(interface == [("image", ["batch", 1, 32, 32]), ("logits", ["batch", 10])],
           "interface: " + ", ".join(f"{name} {shape}" for name, shape in interface))
    report({t.name: tuple(t.dims) for t in graph.initializer} == SHAPES
           and all(t.data_type == TensorProto.FLOAT and t.HasField("raw_data") for t in graph.initializer),
           f"{len(graph.initializer)} float32 weights, of the expected shapes, as raw data")

    if failures:
        print("not run, for the failures above")
        return False
    images = enlarge(digits)
    report(images.shape == (len(digits), 1, 32, 32) and np.array_equal(images * 1024, np.rint(images * 1024))
           and images.min() >= 0 and images.max() <= 1, "enlarged images are multiples of 1/1024 within 0..1")
    logits = run_model(serialized, images)
    report(np.allclose(run_model(serialized, images[:1]), logits[:1], rtol=0, atol=1e-4),
           "one image alone gives the logits it has in the batch")
    right = int((logits.argmax(axis=1) == labels).sum())
    report(right >= LOWEST_ACCURACY * len(labels),
           f"onnxruntime: {right} of {len(labels)} right ({right / len(labels):.2%}), "
           f"at least {LOWEST_ACCURACY:.0%}")
    # Negative control: a comparison that accepts anything would accept this too.
    shifted = int((logits.argmax(axis=1) == (labels + 1) % 10).sum())
    report(shifted < HIGHEST_SHIFTED_ACCURACY * len(labels),
           f"labels shifted by one: {shifted} right ({shifted / len(labels):.2%}), "
           f"below {HIGHEST_SHIFTED_ACCURACY:.0%}")
    return failures == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="assets/digits", help="folder of the files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of first weights, order and jitter (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=40, help="(default: %(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--validate", action="store_true",
                      help="train on 4/5 of the training images, test on 1/5")
    mode.add_argument("--check", action="store_true", help="train nothing, verify the files")
    args = parser.parse_args()
    if args.validate:
        validate(args.seed, args.epochs)
        return
    if not args.check:
        train_and_write(args.out, args.seed, args.epochs)
    if not check(args.out):
        sys.exit(1)


if __name__ == "__main__":
    main()
