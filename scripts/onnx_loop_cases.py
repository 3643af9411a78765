#!/usr/bin/env python3
"""Writes models with loops, sequences and recurrent layers, with inputs and the outputs that they must have.

    python3 scripts/onnx_loop_cases.py OUT_DIR     (needs onnx, onnxruntime and numpy)

writes OUT_DIR/NAME/{model.onnx,input_I.npy,output_J.npy,case.json}. The outputs are those of onnxruntime with all its
optimisations off; those of PRelu of opset 6, which it does not have, are computed here by definition. case.json has

- coded, local: numbers of the convolutions that must run on workers, and of those that must be reported as local;
- why: words that the reason of every local one must have;
- fixed: names of inputs whose values become constants of the model;
- says: for a model that must be refused, words of the refusal. Such a case has no outputs.
"""
import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
CASES = {}
FLOAT, INT, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL

onnxruntime.set_default_logger_severity(4)


def case(**about):
    """Registers a case under the name of its function."""

    def register(build):
        CASES[build.__name__] = (build, about)
        return build

    return register


def info(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


class Net:
    """A graph under construction, of the model or of the body of a loop."""

    def __init__(self, rng, prefix=""):
        self.rng, self.prefix = rng, prefix
        self.nodes, self.constants, self.inputs, self.outputs, self.feeds = [], [], [], [], {}
        self.opset, self.definition = OPSET, None
        self.left_out = set()  # names that the written model lacks

    def normal(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def const(self, value, kind=np.float32):
        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def ints(self, value):
        return self.const(value, np.int64)

    def input(self, name, value, declared=None):
        self.feeds[name] = np.asarray(value)
        kind = helper.np_dtype_to_tensor_dtype(self.feeds[name].dtype)
        self.inputs.append(info(name, kind, declared or self.feeds[name].shape))
        return name

    def takes(self, name, kind=FLOAT, shape=None):
        """An input of a body."""
        self.inputs.append(info(name, kind, shape))
        return name

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"{self.prefix}t{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"{self.prefix}{kind}_{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, out, channels, kernel=3, **attributes):
        scale = np.sqrt(1.0 / (channels * kernel**2))
        weight = self.const(self.normal(out, channels, kernel, kernel, scale=scale))
        return self.op("Conv", x, weight, self.const(self.normal(out, scale=0.1)), **attributes)

    def gives(self, name, kind=FLOAT, shape=None):
        """An output; of a body, a value of its own."""
        if self.prefix:
            name = self.op("Identity", name)
        self.outputs.append(info(name, kind, shape))

    def body(self, prefix="b_", number=(), condition=()):
        """A body with its first two inputs."""
        body = Net(self.rng, self.prefix + prefix)
        body.takes(body.prefix + "i", INT, number)
        body.takes(body.prefix + "on", BOOL, condition)
        return body

    def graph(self):
        return helper.make_graph(self.nodes, self.prefix or "net", self.inputs, self.outputs, self.constants)

    def loop(self, body, count, condition, *carried, outputs=None):
        made = len(body.outputs) - 1 if outputs is None else outputs
        named = self.op("Loop", count, condition, *carried, outputs=made, body=body.graph())
        return [named] if made == 1 else named

    def model(self):
        return helper.make_model(
            self.graph(), opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )


def channels(net, *shape):
    """Data for convolutions with six channels."""
    return net.input("x", net.normal(*(shape or (1, 6, 9, 10))))


# Loops that are unrolled.


def rounds(net, x, count, condition):
    """A carried array goes through a convolution; the means of every iteration are collected."""
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    made = body.op("Relu", body.conv(y, 6, 6, pads=[1, 1, 1, 1]))
    body.gives(made)
    body.gives(body.op("ReduceMean", made, axes=[2, 3], keepdims=0))
    for name in net.loop(body, count, condition, x):
        net.gives(name)


@case(coded=3)
def convolutions_three_times(net):
    rounds(net, channels(net), net.ints(3), net.const(True, bool))


@case(coded=4)
def convolutions_by_a_trip_count_alone(net):
    rounds(net, channels(net), net.ints([4]), "")


@case(coded=2, fixed=["count"])
def convolutions_by_an_input_that_is_given(net):
    x = channels(net)
    rounds(net, x, net.input("count", np.int64(2)), net.const(True, bool))


@case(coded=4)
def convolutions_by_the_size_of_the_batch(net):
    """As torch exports a loop over an axis: one item in each iteration."""
    x = net.input("x", net.normal(4, 6, 9, 10), declared=("N", 6, 9, 10))
    count = net.op("Gather", net.op("Shape", x), net.ints(0))
    body = net.body(condition=())
    item = body.op("Unsqueeze", body.op("Gather", x, "b_i"), body.ints([0]))
    made = body.conv(item, 8, 6)
    body.gives(body.const(True, bool), BOOL)
    body.gives(body.op("Squeeze", made, body.ints([0])))
    (all_,) = net.loop(body, count, net.const(True, bool))
    net.gives(net.op("Tanh", all_))


@case(coded=5)
def convolutions_while_a_counter_is_small(net):
    """As tf2onnx exports a recurrence: no trip count, and a counter that is carried."""
    x = net.input("x", net.normal(1, 6, 9, 5), declared=(1, 6, 9, "W"))
    width = net.op("Cast", net.op("Gather", net.op("Shape", x), net.ints(3)), to=INT32)
    start = net.const(0, np.int32)
    body = net.body()
    at, most, y = body.takes("at", INT32, []), body.takes("most", INT32, []), body.takes("y")
    after = body.op("Add", at, body.const(1, np.int32))
    body.gives(body.op("Less", body.op("Cast", after, to=FLOAT), body.op("Cast", most, to=FLOAT)), BOOL)
    body.gives(after, INT32)
    body.gives(most, INT32)
    column = body.op("Gather", x, at, axis=3)
    y = body.op("Add", y, body.op("Unsqueeze", column, body.ints([3])))
    body.gives(body.op("Tanh", body.conv(y, 6, 6, pads=[1, 1, 1, 1])))
    body.gives(column)
    made = net.loop(body, "", net.op("Less", start, width), start, width, x)
    net.gives(made[0], INT32)
    net.gives(made[2])
    net.gives(made[3])


@case(coded=6)
def loops_within_a_loop(net):
    """The inner loop has as many iterations as the outer one has made."""
    x = channels(net)
    body = net.body()
    y = body.takes("y")
    inner = body.body("n_")
    z = inner.takes("z")
    inner.gives("b_n_on", BOOL)
    inner.gives(inner.op("Sin", inner.conv(z, 6, 6, pads=[1, 1, 1, 1])))
    made = body.loop(inner, body.op("Add", "b_i", body.ints(1)), body.const(True, bool), y)
    body.gives("b_on", BOOL)
    body.gives(made[0])
    net.gives(net.loop(body, net.ints(3), net.const(True, bool), x)[0])


@case(coded=2)
def branches_with_layers_of_the_same_name(net):
    x = channels(net)
    for _ in range(2):
        count = net.op("Gather", net.op("Shape", x), net.ints(0))
        taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
        taken.gives(taken.conv(x, 6, 6, pads=[1, 1, 1, 1]))
        other.gives(other.op("Neg", x))
        one = net.op("Equal", count, net.ints(1))
        x = net.op("Tanh", net.op("If", one, then_branch=taken.graph(), else_branch=other.graph()))
    net.gives(x)


def less_the_mean_of_positive(net, y):
    """The number of positive elements depends on data."""
    places = net.op("Transpose", net.op("NonZero", net.op("Greater", y, net.const(0))), perm=[1, 0])
    return net.op("Sub", y, net.op("ReduceMean", net.op("GatherND", y, places), axes=[0], keepdims=0))


@case()
def a_slice_whose_bounds_are_data(net):
    x = net.input("x", net.normal(6, 5, 4))
    bounds = [net.input(name, np.array(values)) for name, values in (("starts", [1, 0, 2]), ("ends", [4, 3, 9]))]
    net.gives(net.op("Sin", net.op("Slice", x, *bounds)))


@case()
def slices_in_a_loop_by_data(net):
    """As exports of recurrent decoders do: every iteration writes behind what is there."""
    x, most = net.input("x", net.normal(8, 3)), net.input("most", np.float32(2.5))
    body = net.body()
    at, rest, sum_ = body.takes("at", INT, [1]), body.takes("rest"), body.takes("sum")
    after = body.op("Add", at, body.ints([1]))
    row = body.op("Slice", rest, at, after, body.ints([0]))
    body.gives(body.op("Less", body.op("ReduceSum", body.op("Abs", sum_), keepdims=0), most), BOOL)
    body.gives(after, INT)
    body.gives(body.op("Mul", rest, body.const(0.5)))
    body.gives(body.op("Add", sum_, row))
    zero = net.const(np.zeros((1, 3)))
    made = net.loop(body, net.ints(7), net.const(True, bool), net.ints([0]), x, zero)
    net.gives(made[2])


@case(local=1, why=["Loop"])
def sizes_by_data_in_every_iteration(net):
    """Three iterations, and another number of elements in each."""
    x = channels(net)
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(less_the_mean_of_positive(body, body.conv(y, 6, 6, pads=[1, 1, 1, 1])))
    net.gives(net.loop(body, net.ints(3), net.const(True, bool), x)[0])


@case(coded=1)
def sizes_by_data_in_a_branch_that_is_known(net):
    x = channels(net)
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(less_the_mean_of_positive(taken, taken.conv(x, 6, 6, pads=[1, 1, 1, 1])))
    other.gives(other.op("Neg", x))
    one = net.op("Equal", net.op("Gather", net.op("Shape", x), net.ints(0)), net.ints(1))
    net.gives(net.op("If", one, then_branch=taken.graph(), else_branch=other.graph()))


@case(coded=2)
def a_branch_by_the_number_of_the_iteration(net):
    x = channels(net)
    body = net.body()
    y = body.takes("y")
    even = body.op("Equal", body.op("Mod", "b_i", body.ints(2)), body.ints(0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.conv(y, 6, 6, pads=[1, 1, 1, 1]))
    other.gives(other.op("Neg", y))
    body.gives("b_on", BOOL)
    body.gives(body.op("If", even, then_branch=taken.graph(), else_branch=other.graph()))
    net.gives(net.loop(body, net.ints(4), net.const(True, bool), x)[0])


@case(coded=3)
def shapes_that_shrink(net):
    """Without padding, every iteration makes a smaller array."""
    x = channels(net)
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Tanh", body.conv(y, 6, 6)))
    net.gives(net.loop(body, net.ints(3), net.const(True, bool), x)[0])


@case()
def an_input_of_a_body_without_a_type(net):
    x = net.input("x", net.normal(2, 5))
    body = net.body()
    body.takes("y")
    body.inputs[2] = onnx.ValueInfoProto(name="y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Mul", "y", body.op("Cast", body.op("Add", "b_i", body.ints(2)), to=FLOAT)))
    net.gives(net.loop(body, net.ints(3), net.const(True, bool), x)[0])


@case()
def logarithms_that_underflow(net):
    """A softmax and a logarithm, one after the other, would make infinities."""
    x = net.input("x", net.normal(2, 5, scale=40.0))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("LogSoftmax", body.op("Mul", y, body.const(3.0)), axis=1))
    net.gives(net.loop(body, net.ints(2), net.const(True, bool), x)[0])


@case()
def branches_by_data_of_which_one_is_constant(net):
    """The value of the constant one must not be taken for that of the other."""
    x = net.input("x", -np.abs(net.normal(3, 4)))
    positive = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.const(net.normal(3, 4)))
    other.gives(other.op("Neg", x))
    net.gives(net.op("Add", net.op("If", positive, then_branch=taken.graph(), else_branch=other.graph()), net.const(1.0)))


@case()
def branches_by_data_of_different_sizes(net):
    x = net.input("x", net.normal(3, 4))
    positive = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.op("Concat", x, x, axis=0))
    other.gives(other.op("Neg", x))
    made = net.op("If", positive, then_branch=taken.graph(), else_branch=other.graph())
    net.gives(made)
    net.gives(net.op("ReduceSum", made, net.ints([0]), keepdims=0))


@case(says=["If node If_2", "number of axes agree"])
def refused_branches_of_different_numbers_of_axes(net):
    x = net.input("x", net.normal(3, 4))
    positive = net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.op("Unsqueeze", x, taken.ints([0])))
    other.gives(other.op("Neg", x))
    net.gives(net.op("If", positive, then_branch=taken.graph(), else_branch=other.graph()))


# Loops that run iteration by iteration.


def by_data(net, x, least=2):
    """A number of iterations that depends on data."""
    positive = net.op("Cast", net.op("Greater", net.op("ReduceMax", x, keepdims=0), net.const(0.0)), to=INT)
    return net.op("Add", net.op("Mul", positive, net.ints(3)), net.ints(least - 3))


@case(coded=1, local=1, why=["Loop node", "as a whole"])
def convolutions_by_data(net):
    x = net.conv(channels(net), 6, 6)
    rounds(net, x, by_data(net, x), net.const(True, bool))


@case(local=1, why=["Loop node"])
def convolutions_too_often_to_unroll(net):
    rounds(net, net.input("x", net.normal(1, 6, 4, 5)), net.ints(100), net.const(True, bool))


@case()
def until_a_value_is_large(net):
    x = net.input("x", net.normal(3, 4))
    body = net.body()
    y = body.takes("y")
    doubled = body.op("Mul", y, body.const(2.0))
    largest = body.op("ReduceMax", body.op("Abs", doubled), keepdims=0)
    body.gives(body.op("Less", largest, body.const(50.0)), BOOL)
    body.gives(doubled)
    body.gives(largest)
    for name in net.loop(body, "", net.const(True, bool), x):
        net.gives(name)


@case()
def until_a_value_is_large_or_often(net):
    """The trip count ends it first."""
    x = net.input("x", net.normal(3, 4))
    body = net.body()
    y = body.takes("y")
    doubled = body.op("Mul", y, body.const(2.0))
    largest = body.op("ReduceMax", body.op("Abs", doubled), keepdims=0)
    body.gives(body.op("Less", largest, body.const(1e6)), BOOL)
    body.gives(doubled)
    body.gives("b_i", INT)
    made = net.loop(body, by_data(net, x, 4), net.const(True, bool), x)
    net.gives(made[0])
    net.gives(made[1], INT)


@case()
def never_because_the_condition_is_false(net):
    x = net.input("x", net.normal(3, 4))
    never = net.op("Greater", net.op("ReduceMin", x, keepdims=0), net.const(1e9))
    body = net.body()
    y = body.takes("y", shape=[3, 4])
    body.gives("b_on", BOOL)
    made = body.op("Neg", y)
    body.gives(made, shape=[3, 4])
    body.gives(made, shape=[3, 4])
    for name in net.loop(body, net.ints(5), never, x):
        net.gives(name)


@case()
def never_because_the_condition_is_constant(net):
    x = net.input("x", net.normal(3, 4))
    rounds_of_nothing(net, x, net.ints(5), net.const(False, bool))


@case()
def never_because_the_trip_count_is_zero(net):
    x = net.input("x", net.normal(3, 4))
    rounds_of_nothing(net, x, net.ints(0), net.const(True, bool))


@case()
def never_because_the_trip_count_is_negative(net):
    x = net.input("x", net.normal(3, 4))
    rounds_of_nothing(net, x, net.ints(-7), "")


@case()
def never_because_the_trip_count_depends_on_data(net):
    x = net.input("x", np.abs(net.normal(3, 4)))
    rounds_of_nothing(net, x, by_data(net, x, 0), net.const(True, bool))


def rounds_of_nothing(net, x, count, condition):
    body = net.body()
    y = body.takes("y", shape=[3, 4])
    body.gives("b_on", BOOL)
    made = body.op("Neg", y)
    body.gives(made, shape=[3, 4])
    body.gives(body.op("ReduceSum", made, body.ints([1]), keepdims=0), shape=[3])
    for name in net.loop(body, count, condition, x):
        net.gives(name)


@case()
def arrays_that_grow(net):
    """Every iteration appends what it makes; how often depends on data."""
    x = net.input("x", net.normal(1, 4))
    count = by_data(net, x, 5)
    body = net.body()
    y = body.takes("y", shape=["L", 4])
    last = body.op("Slice", y, body.ints([-1]), body.ints([2**40]), body.ints([0]))
    made = body.op("Tanh", body.op("MatMul", last, body.const(net.normal(4, 4))))
    body.gives("b_on", BOOL)
    body.gives(body.op("Concat", y, made, axis=0), shape=["M", 4])
    (grown,) = net.loop(body, count, net.const(True, bool), x)
    net.gives(grown)
    net.gives(net.op("ReduceSum", grown, net.ints([0]), keepdims=0))


@case()
def arrays_that_grow_a_known_number_of_times(net):
    x = net.input("x", net.normal(1, 4))
    body = net.body()
    y = body.takes("y", shape=["L", 4])
    body.gives("b_on", BOOL)
    body.gives(body.op("Concat", y, body.op("Neg", y), axis=0), shape=["M", 4])
    net.gives(net.loop(body, net.ints(3), net.const(True, bool), x)[0])


@case()
def parts_by_the_number_of_the_iteration(net):
    """Shapes in the body depend on the number of the iteration, how often it runs on data."""
    x = net.input("x", net.normal(2, 12))
    body = net.body()
    y = body.takes("y", shape=[2, 1])
    first = body.op("Unsqueeze", "b_i", body.ints([0]))
    last = body.op("Add", body.op("Mul", first, body.ints([2])), body.ints([1]))
    part = body.op("Slice", x, first, last, body.ints([1]))
    body.gives("b_on", BOOL)
    body.gives(body.op("Add", y, body.op("ReduceSum", part, body.ints([1]), keepdims=1)), shape=[2, 1])
    body.gives(body.op("ReduceMax", part, axes=[1], keepdims=0))
    for name in net.loop(body, by_data(net, x, 5), net.const(True, bool), net.const(net.normal(2, 1))):
        net.gives(name)


@case()
def a_value_without_axes_becomes_an_array(net):
    """As Paddle exports a search: what the first iteration sets begins as a placeholder. A constant is handed on."""
    x = net.input("x", net.normal(2, 3))
    body = net.body(number=(1,))
    at, most = body.takes("at", INT, []), body.takes("most", INT, [])
    made, weight = body.takes("made", shape=["N", 3]), body.takes("weight", shape=[3, 3])
    y = body.takes("y", shape=["K", 3])
    after = body.op("Add", at, body.ints(1))
    y2 = body.op("Tanh", body.op("MatMul", y, weight))
    small = body.op("Less", body.op("ReduceSum", y2, keepdims=0), body.const(1e6))
    body.gives(body.op("And", small, body.op("Less", after, most)), BOOL)
    body.gives(after, INT)
    body.gives(most, INT)
    body.gives(body.op("Exp", y2))
    body.gives(weight)
    body.gives(y2)
    weight = net.const(net.normal(3, 3))
    made = net.loop(body, net.ints([1024]), net.const(True, bool), net.ints(0), net.ints(70), net.const(0.0), weight, x)
    net.gives(made[0], INT)
    net.gives(made[2])
    net.gives(made[4])


@case()
def a_branch_by_data_within_a_loop(net):
    x = net.input("x", net.normal(3, 4))
    body = net.body()
    y = body.takes("y")
    positive = body.op("Greater", body.op("ReduceSum", y, keepdims=0), body.const(0.0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.op("Sub", y, taken.const(net.normal(3, 4))))
    other.gives(other.op("Add", y, x))
    body.gives("b_on", BOOL)
    body.gives(body.op("If", positive, then_branch=taken.graph(), else_branch=other.graph()))
    body.gives(positive, BOOL)
    made = net.loop(body, by_data(net, x, 7), net.const(True, bool), x)
    net.gives(made[0])
    net.gives(made[1], BOOL)


@case()
def branches_of_different_numbers_of_axes_within_a_loop(net):
    """As Paddle exports the end of a search: a flag has an axis only where one of the branches gave it one."""
    x = net.input("x", net.normal(3, 4))
    body = net.body()
    y, flag = body.takes("y", shape=[3, 4]), body.takes("flag", BOOL)
    large = body.op("Greater", body.op("ReduceMax", body.op("Abs", y), keepdims=0), body.const(40.0))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    taken.gives(taken.const(True, bool), BOOL)
    other.gives(other.op("Cast", other.op("Add", other.op("Cast", flag, to=INT), other.ints([0])), to=BOOL), BOOL)
    ended = body.op("If", large, then_branch=taken.graph(), else_branch=other.graph())
    body.gives(body.op("Not", body.op("Squeeze", body.op("Reshape", ended, body.ints([1])))), BOOL)
    body.gives(body.op("Mul", y, body.const(1.3)), shape=[3, 4])
    body.gives(ended, BOOL)
    net.gives(net.loop(body, net.ints([1000]), net.const(True, bool), x, net.const(False, bool))[0])


@case()
def a_loop_by_data_within_a_loop_by_data(net):
    """The inner loop reads values of both graphs around it."""
    x = net.input("x", net.normal(3, 4))
    body = net.body()
    y = body.takes("y")
    inner = body.body("n_")
    z = inner.takes("z")
    inner.gives("b_n_on", BOOL)
    scaled = inner.op("Mul", inner.op("Sub", z, y), inner.const(0.7))
    inner.gives(inner.op("Add", scaled, x))
    inner.gives(inner.op("ReduceMean", scaled, axes=[0], keepdims=0))
    made = body.loop(inner, by_data(body, y, 3), body.const(True, bool), y)
    body.gives("b_on", BOOL)
    body.gives(body.op("Tanh", made[0]))
    body.gives(body.op("ReduceSum", made[1], body.ints([0]), keepdims=0))
    for name in net.loop(body, by_data(net, x, 4), net.const(True, bool), x):
        net.gives(name)


@case(local=1, why=["If node", "as a whole"])
def a_loop_within_a_branch_by_data(net):
    x = channels(net)
    positive = net.op("Greater", net.op("ReduceSum", x, keepdims=0), net.const(-1e9))
    taken, other = Net(net.rng, "p_"), Net(net.rng, "o_")
    body = taken.body()
    y = body.takes("y")
    body.gives("p_b_on", BOOL)
    body.gives(body.op("Tanh", body.conv(y, 6, 6, pads=[1, 1, 1, 1])))
    taken.gives(taken.loop(body, by_data(taken, x, 3), taken.const(True, bool), x)[0])
    other.gives(other.op("Neg", x))
    net.gives(net.op("If", positive, then_branch=taken.graph(), else_branch=other.graph()))


@case()
def integers_booleans_and_outputs_that_are_left_out(net):
    x = net.input("x", net.normal(5))
    body = net.body(number=(1,), condition=(1,))
    total, flag, y = body.takes("total", INT), body.takes("flag", BOOL), body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Add", total, "b_i"), INT)
    body.gives(body.op("Not", flag), BOOL)
    body.gives(body.op("Mul", y, body.const(-1.5)))
    body.gives(body.op("Cast", "b_i", to=INT32), INT32)
    body.gives(flag, BOOL)
    inputs = (by_data(net, x, 4), net.const([True], bool), net.ints([10]), net.const([False], bool), x)
    names = ["total", "flag", "left", "numbers", "flags"]
    net.nodes.append(helper.make_node("Loop", inputs, names, "loop", body=body.graph()))
    # onnxruntime crashes where an output in the middle is left out.
    net.left_out = {"flag"}
    for name, kind in zip(names, (INT, BOOL, FLOAT, INT32, BOOL)):
        if name not in net.left_out:
            net.gives(name, kind)


@case()
def constants_too_often_to_unroll(net):
    """Everything is known before the run but for the last addition; a loop of constants must not run while shapes are found."""
    x = net.input("x", net.normal(4))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Add", body.op("Mul", y, body.const(0.9)), body.const(net.normal(4))))
    made = net.loop(body, net.ints(90), net.const(True, bool), net.const(net.normal(4)))
    net.gives(net.op("Add", made[0], x))


# Loops that are refused.


@case(says=["Loop node endless", "never ends"])
def refused_without_an_end(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Neg", y))
    net.nodes.append(helper.make_node("Loop", ["", "", x], ["z"], "endless", body=body.graph()))
    net.gives("z")


@case(says=["Loop node l", "no condition", "engines disagree"])
def refused_where_engines_disagree(net):
    """The loop has no condition, and its body makes one that ends it."""
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives(body.op("Less", "b_i", body.ints(1)), BOOL)
    body.gives(body.op("Neg", y))
    net.nodes.append(helper.make_node("Loop", [net.ints(5), "", x], ["z"], "l", body=body.graph()))
    net.gives("z")


@case(says=["Loop node l", "carried value 0", "make them agree"])
def refused_where_a_type_changes(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Cast", y, to=INT32), INT32)
    net.nodes.append(helper.make_node("Loop", [net.ints(5), "", x], ["z"], "l", body=body.graph()))
    net.gives("z", INT32)


@case(says=["Loop node l", "3 inputs", "make them agree"])
def refused_with_another_number_of_inputs(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Neg", y))
    net.nodes.append(helper.make_node("Loop", [net.ints(5), "", x, x], ["z"], "l", body=body.graph()))
    net.gives("z")


@case(says=["Loop node l", "outer", "Identity"])
def refused_where_an_output_is_made_outside(net):
    x = net.input("x", net.normal(2))
    net.nodes.append(helper.make_node("Neg", [x], ["outer"]))
    body = net.body()
    body.takes("y")
    body.gives("b_on", BOOL)
    body.outputs.append(info("outer"))
    net.nodes.append(helper.make_node("Loop", [net.ints(5), "", x], ["z"], "l", body=body.graph()))
    net.gives("z")


@case(says=["Loop node l", "number of axes", "output 0"])
def refused_where_the_number_of_axes_depends_on_data(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Unsqueeze", y, body.ints([0])))
    net.nodes.append(helper.make_node("Loop", [by_data(net, x), net.const(True, bool), x], ["z"], "l", body=body.graph()))
    net.gives("z")


@case(says=["Loop node l", "different shapes"])
def refused_where_collected_shapes_differ(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    made = body.op("Concat", y, y, axis=0)
    body.gives("b_on", BOOL)
    body.gives(made)
    body.gives(made)
    net.nodes.append(helper.make_node("Loop", [net.ints(3), "", x], ["z", "all"], "l", body=body.graph()))
    net.gives("z")
    net.gives("all")


@case(says=["Loop node", "within one another"])
def refused_with_many_loops_within_one_another(net):
    x = net.input("x", net.normal(2))

    def nested(graph, value, depth):
        body = graph.body(f"n{depth}_")
        y = body.takes(f"y{depth}")
        body.gives(body.prefix + "on", BOOL)
        body.gives(nested(body, y, depth - 1) if depth else body.op("Neg", y))
        return graph.loop(body, graph.ints(2), graph.const(True, bool), value)[0]

    net.gives(nested(net, x, 5))


@case(says=["Loop node", "2 elements"])
def refused_with_two_trip_counts(net):
    x = net.input("x", net.normal(2))
    body = net.body()
    y = body.takes("y")
    body.gives("b_on", BOOL)
    body.gives(body.op("Neg", y))
    net.gives(net.loop(body, net.ints([2, 3]), "", x)[0])


# Sequences.


def lengths(net, values, kind=np.int32):
    """Lengths that depend on data: none is known before the run."""
    flags = net.input("flags", np.asarray(values, kind))
    return net.op("Abs", flags)


@case()
def reversed_by_time_first(net):
    x = net.input("x", net.normal(5, 3, 2))
    net.gives(net.op("ReverseSequence", x, net.input("lengths", np.array([5, 1, 3]))))


@case()
def reversed_by_batch_first(net):
    x = net.input("x", np.arange(24, dtype=np.int64).reshape(3, 8))
    sizes = net.input("lengths", np.array([2, 8, 5]))
    net.gives(net.op("ReverseSequence", x, sizes, batch_axis=0, time_axis=1), INT)


@case()
def reversed_whole(net):
    """The lengths are known once the shapes are, as tf2onnx writes them."""
    x = net.input("x", net.normal(5, 3), declared=("T", "N"))
    shape = net.op("Shape", x)
    sizes = net.op("Expand", net.op("Slice", shape, net.ints([0]), net.ints([1])), net.op("Slice", shape, net.ints([1]), net.ints([2])))
    net.gives(net.op("ReverseSequence", x, sizes, time_axis=0, batch_axis=1))


@case(says=["ReverseSequence node r", "lengths", "from 0 to 5"])
def refused_with_a_length_that_the_data_do_not_have(net):
    x = net.input("x", net.normal(5, 3))
    sizes = net.input("lengths", np.array([2, 6, 1]))
    net.nodes.append(helper.make_node("ReverseSequence", [x, sizes], ["y"], "r"))
    net.gives("y")


@case(says=["ReverseSequence node r", "batch_axis and time_axis are 2 and 0"])
def refused_with_other_axes(net):
    x = net.input("x", net.normal(5, 3, 2))
    sizes = net.input("lengths", np.array([2, 3]))
    net.nodes.append(helper.make_node("ReverseSequence", [x, sizes], ["y"], "r", batch_axis=2))
    net.gives("y")


# Recurrent layers.

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(net, kind, direction, sizes, outputs, bias=True, state=True, steps=6, **attributes):
    """A layer of five units over three sequences of four features, with one length each."""
    units, features, batch = 5, 4, 3
    directions = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * units
    x = net.input("x", net.normal(steps, batch, features))
    inputs = [x, net.const(net.normal(directions, rows, features, scale=0.7))]
    inputs.append(net.const(net.normal(directions, rows, units, scale=0.7)))
    inputs.append(net.const(net.normal(directions, 2 * rows, scale=0.5)) if bias else "")
    inputs.append(lengths(net, sizes) if sizes is not None else "")
    if state:
        inputs.append(net.input("state", net.normal(directions, batch, units)))
    names = [name if wanted else "" for name, wanted in zip(("all", "last", "cell"), outputs)]
    while not names[-1]:
        names.pop()
    net.nodes.append(helper.make_node(kind, inputs, names, "layer", direction=direction, hidden_size=units, **attributes))
    for name in filter(None, names):
        net.gives(name)


def layers():
    for kind in ("RNN", "GRU", "LSTM"):
        for direction in ("forward", "reverse", "bidirectional"):
            for outputs in ((1, 1), (1, 0), (0, 1)):
                name = f"{kind.lower()}_{direction}_{'all' if outputs[0] else ''}{'last' if outputs[1] else ''}"

                def build(net, kind=kind, direction=direction, outputs=outputs):
                    more = {"linear_before_reset": 1} if kind == "GRU" and direction != "forward" else {}
                    recurrent(net, kind, direction, [6, 2, 4], outputs, bias=direction != "forward", **more)

                CASES[name] = (build, {})
            if kind == "LSTM":

                def build(net, kind=kind, direction=direction):
                    recurrent(net, kind, direction, None, (1, 1, 1), state=False)

                CASES[f"lstm_{direction}_without_lengths"] = (build, {})


layers()


@case()
def gru_of_empty_sequences(net):
    recurrent(net, "GRU", "bidirectional", [0, 6, 1], (1, 1), linear_before_reset=1)


@case()
def gru_of_lengths_that_are_known(net):
    """Known once shapes are, and not those of the data."""
    recurrent(net, "GRU", "forward", None, (1, 1))
    net.nodes[-1].input[4] = net.const([3, 6, 2], np.int32)


@case(says=["LSTM node layer", "sequence_lens", "Y_c"])
def refused_final_cells_of_sequences(net):
    recurrent(net, "LSTM", "forward", [6, 2, 4], (1, 1, 1))


@case(says=["GRU node layer", "lengths", "from 0 to 6"])
def refused_lengths_of_a_layer(net):
    recurrent(net, "GRU", "forward", [6, 7, 4], (1, 1))


@case(says=["GRU node layer", "activations", "Relu"])
def refused_activations(net):
    recurrent(net, "GRU", "forward", None, (1, 1), activations=["Sigmoid", "Relu"])


@case()
def gru_of_the_usual_activations(net):
    recurrent(net, "GRU", "bidirectional", None, (1, 1), activations=["Sigmoid", "Tanh", "sigmoid", "tanh"])


@case(says=["RNN node layer", "clip"])
def refused_limits_of_arguments(net):
    recurrent(net, "RNN", "forward", None, (1, 1), clip=0.5)


@case()
def lengths_in_descending_order(net):
    """As torch packs sequences: lengths are integers of 64 bits by a cast, which tract takes for sizes."""
    sizes = net.op("Cast", net.input("sizes", np.array([3, 7, 5], np.int32)), to=INT)
    sorted_, order = net.op("TopK", sizes, net.ints([3]), outputs=2)
    net.gives(sorted_, INT)
    net.gives(order, INT)


# Slopes.


def prelu(opset, data, slope):
    def build(net):
        net.opset = opset
        x, slopes = net.input("x", net.normal(*data)), net.normal(*slope)
        net.gives(net.op("PRelu", x, net.const(slopes)))
        if opset < 7 and slopes.size in (1, data[1]):
            wide = slopes.reshape(-1, *[1] * (len(data) - 2)) if slopes.size > 1 else slopes.reshape(())
            net.definition = [np.where(net.feeds["x"] < 0, net.feeds["x"] * wide, net.feeds["x"])]

    return build


for number, (opset, data, slope) in enumerate([
    (6, (2, 3, 4, 5), (3,)), (6, (2, 3, 4, 5), (1,)), (6, (2, 3), (3,)), (6, (2, 5, 5), (5,)), (6, (2, 3, 4), ()),
    (7, (2, 3, 4, 5), (3, 1, 1)), (9, (2, 3, 4, 5), (5,)), (16, (2, 3, 4, 5), (2, 3, 4, 5)), (17, (3, 4), ()),
    (17, (2, 3, 3), (3,)), (17, (2, 3, 3), (3, 1)),
]):  # fmt: skip
    CASES[f"prelu_{number}_of_opset_{opset}"] = (prelu(opset, data, slope), {})
CASES["refused_slopes_of_other_channels"] = (prelu(6, (2, 3, 4, 5), (4,)), {"says": ["PRelu node", "one for each channel"]})


# Scans.


@case(local=1, coded=1, why=["Scan node", "as a whole"])
def a_scan_with_a_convolution(net):
    x = net.conv(net.input("x", net.normal(4, 6, 9, 10)), 6, 6)
    body = Net(net.rng, "b_")
    state, item = body.takes("state", shape=[1, 6, 7, 8]), body.takes("item", shape=[6, 7, 8])
    made = body.conv(body.op("Add", state, body.op("Unsqueeze", item, body.ints([0]))), 6, 6, pads=[1, 1, 1, 1])
    made = body.op("Tanh", made)
    body.gives(made, shape=[1, 6, 7, 8])
    body.gives(body.op("Squeeze", made, body.ints([0])), shape=[6, 7, 8])
    first = net.const(net.normal(1, 6, 7, 8))
    for name in net.op("Scan", first, x, outputs=2, body=body.graph(), num_scan_inputs=1):
        net.gives(name)


@case()
def a_scan_whose_body_has_no_types(net):
    """The delta rule of linear attention: its state is read and written in every step."""
    state = net.input("state", net.normal(1, 2, 4, 4) / 4)
    rows = [net.input(name, net.normal(5, 1, 2, 4) / 4) for name in ("query", "key", "value", "decay")]
    body = Net(net.rng, "b_")
    taken = ["held", "q", "k", "v", "d"]
    for name in taken:
        body.takes(name)
    body.inputs = [onnx.ValueInfoProto(name=name) for name in taken]
    last, before = body.ints([-1]), body.ints([-2])
    decayed = body.op("Mul", "held", body.op("Unsqueeze", body.op("Exp", "d"), last))
    column = body.op("Unsqueeze", "k", last)
    read = body.op("MatMul", body.op("Transpose", decayed, perm=[0, 1, 3, 2]), column)
    change = body.op("Unsqueeze", body.op("Sub", "v", body.op("Squeeze", read, last)), before)
    written = body.op("Add", decayed, body.op("MatMul", column, change))
    body.gives(written)
    body.gives(body.op("Squeeze", body.op("MatMul", body.op("Unsqueeze", "q", before), written), before))
    for name in net.op("Scan", state, *rows, outputs=2, body=body.graph(), num_scan_inputs=4):
        net.gives(name)


def answers(path, net):
    if net.definition is not None:
        return net.definition
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run([output.name for output in net.outputs], net.feeds)


def write(folder, name, number):
    build, about = CASES[name]
    net = Net(np.random.default_rng([7, number]))
    build(net)
    model = net.model()
    os.makedirs(folder)
    path = os.path.join(folder, "model.onnx")
    onnx.save(model, path)
    outputs = [] if "says" in about else answers(path, net)
    for node in model.graph.node:
        node.output[:] = ["" if name in net.left_out else name for name in node.output]
    onnx.save(model, path)
    for output in outputs:
        assert output.dtype != np.float32 or np.isfinite(output).all(), f"{name}: not finite"
        if output.dtype == np.float32 and output.size > 1:
            assert output.std() > 1e-3 * np.abs(output).max(), f"{name}: constant"
    for kind, arrays in (("input", net.feeds.values()), ("output", outputs)):
        for at, array in enumerate(arrays):
            np.save(os.path.join(folder, f"{kind}_{at}.npy"), np.asarray(array))
    facts = {"inputs": list(net.feeds), "outputs": len(outputs), "coded": 0, "local": 0, "why": [], "fixed": []} | about
    with open(os.path.join(folder, "case.json"), "w") as f:
        json.dump(facts, f, indent=1)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for number, name in enumerate(CASES):
        write(os.path.join(sys.argv[1], name), name, number)


if __name__ == "__main__":
    main()
