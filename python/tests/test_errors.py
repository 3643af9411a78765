"""Exceptions, their fields, and what happens at the borders of a process."""

import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import LENET, ROOT, python

import fcdcc
from fcdcc import _errors


def test_every_error_of_the_library_has_a_class():
    text = (ROOT / "src/error.rs").read_text()
    body = text[text.index("pub enum Error {") :]
    body = body[: body.index("\n}\n")]
    variants = set(re.findall(r"^    (\w+)(?: \{|,)$", body, re.MULTILINE))
    assert len(variants) > 15
    renamed = {"Memory": "OutOfMemory", "Gpu": "GpuError", "Model": "ModelError", "Io": "FileError", "File": "FileError"}
    # The error of a layer is raised as the error itself.
    expected = {renamed.get(variant, variant) for variant in variants - {"Layer"}}
    assert expected <= set(_errors._CLASSES), expected - set(_errors._CLASSES)
    assert set(_errors._CLASSES) - expected == {"Internal", "ForkedProcess"}


def test_exit_statuses_are_those_of_the_command():
    statuses = {fcdcc.BadInput: 2, fcdcc.Shortfall: 3, fcdcc.Refused: 4, fcdcc.Internal: 1, fcdcc.Cancelled: 1}
    assert {kind: kind.exit_status for kind in statuses} == statuses
    assert issubclass(fcdcc.Mismatch, ValueError) and issubclass(fcdcc.OutOfMemory, MemoryError)


def test_a_shortfall_has_its_numbers_and_its_layer(digits):
    pool = fcdcc.Pool.cpu(6, faults=["0,1,2:crash"])
    prepared = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)}).prepare(pool, on_shortfall="fail")
    with pytest.raises(fcdcc.Shortfall) as caught:
        prepared.run(digits[:1])
    error = caught.value
    assert (error.needed, error.total) == (4, 6) and error.arrived <= 3 and "cpu-0" in error.missing
    assert error.layer and error.layer in str(error) and "on_shortfall=" in str(error) + error.help


def test_too_strict_a_tolerance_is_a_refusal(digits):
    model = fcdcc.Model(LENET, shapes={"image": (1, 1, 32, 32)})
    with pytest.raises(fcdcc.ErrorBound) as caught:
        model.prepare(fcdcc.Pool.cpu(6), max_error=1e-12).run(digits[:1])
    assert caught.value.bound > caught.value.tolerance == 1e-12


WAITING = """
    import numpy as np, fcdcc
    pool = fcdcc.Pool.cpu(6, faults=["all:delay=60s"])
    x, w = np.ones((1, 4, 16, 16), np.float32), np.ones((8, 4, 3, 3), np.float32)
    layer = fcdcc.CodedConv(pool, x.shape, w, layer_deadline=100, on_shortfall="fail")
    print("ready", flush=True)
    try:
        layer.run(x)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_ends_a_run():
    import textwrap

    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WAITING)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # into the run: nothing tells from outside that it has begun
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out == "interrupted\n" and time.monotonic() - started < 15


HANDLED = """
    import os, signal, threading, time, numpy as np, fcdcc
    x, w = np.ones((1, 4, 16, 16), np.float32), np.ones((8, 4, 3, 3), np.float32)
    layer = fcdcc.CodedConv(fcdcc.Pool.cpu(6, faults=["all:delay=700ms"]), x.shape, w, hedge="off")
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append("noted"))
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    output = layer.run(x).output
    assert seen == ["noted"], seen
    # A handler that raises ends the run, whichever the signal is.
    class Stop(Exception):
        pass
    def stop(*_):
        raise Stop
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    started = time.monotonic()
    try:
        layer.run(x)
        raise SystemExit("not stopped")
    except Stop:
        assert time.monotonic() - started < 0.6
    # Another owner of the descriptor keeps it.
    import socket
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        layer.run(x)
        raise SystemExit("not stopped")
    except Stop:
        pass
    assert ours.recv(1) == bytes([signal.SIGALRM]) and signal.set_wakeup_fd(-1) == theirs.fileno()
    assert np.allclose(layer.run(x).output, output)
    print("handled")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_handlers_of_signals_run_and_may_let_a_run_go_on():
    done = python(HANDLED)
    assert done.stdout == "handled\n", done.stderr


FORKED = """
    import multiprocessing, numpy as np, fcdcc
    x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((4, 2, 3, 3), np.float32)

    def child(layer):
        try:
            if layer is None:
                fcdcc.Pool.cpu(2)
            else:
                layer.run(x)
        except fcdcc.ForkedProcess as error:
            assert "spawn" in str(error) and error.owner != error.process
            raise SystemExit(42)

    layer = fcdcc.CodedConv(fcdcc.Pool.cpu(3), x.shape, w, tolerate=1)
    layer.run(x)
    context = multiprocessing.get_context("fork")
    for given in (layer, None):
        process = context.Process(target=child, args=(given,))
        process.start()
        process.join(20)
        assert process.exitcode == 42, process.exitcode
    layer.run(x)
    print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_use_after_fork_is_refused_with_its_help():
    done = python(FORKED)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_before_the_first_use_may_use_it():
    done = python("""
        import os, numpy as np, fcdcc
        from fcdcc import CodedConv, Pool
        child = os.fork()
        x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((4, 2, 3, 3), np.float32)
        CodedConv(Pool.cpu(3), x.shape, w, tolerate=1).run(x)
        if child == 0:
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert done.stdout == "7\n", done.stderr


def test_spawned_processes_have_pools_of_their_own(tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        "import multiprocessing, numpy as np, fcdcc\n"
        "x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((4, 2, 3, 3), np.float32)\n"
        "def total(scale):\n"
        "    return float(fcdcc.conv(fcdcc.Pool.cpu(3), x * scale, w, tolerate=1).output.sum())\n"
        "if __name__ == '__main__':\n"
        "    own = total(1)\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as processes:\n"
        "        print([round(each / own) for each in processes.map(total, [1, 2, 3])])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[1, 2, 3]\n", done.stderr


def test_records_go_to_the_loggers_of_python():
    done = python("""
        import logging, time, fcdcc
        seen = []
        class Keep(logging.Handler):
            def emit(self, record):
                seen.append((record.levelname, record.name, record.getMessage()))
        logger = logging.getLogger("fcdcc")
        logger.addHandler(Keep())
        def prepare():
            # Says, at level INFO, how much memory the model needs.
            fcdcc.Model("assets/digits/lenet5.onnx", shapes={"image": (1, 1, 32, 32)}).prepare(fcdcc.Pool.cpu(6))
        prepare()
        time.sleep(0.3)  # for records that should not come
        levels = {level for level, _, _ in seen}
        assert "DEBUG" not in levels and "INFO" not in levels, seen
        logger.setLevel(logging.DEBUG)
        prepare()
        end = time.monotonic() + 20
        while not any(record[:2] == ("INFO", "fcdcc.model.prepare") for record in seen):
            assert time.monotonic() < end, seen
            time.sleep(0.01)
        print(True)
    """)
    assert done.stdout == "True\n", done.stderr


def test_objects_of_a_pool_say_that_they_cannot_be_copied(pool, rng):
    import pickle

    model = fcdcc.Model(LENET)
    for each in (model, model.prepare(pool), fcdcc.Worker("w")):
        with pytest.raises(TypeError, match="process"):
            pickle.dumps(each)


def test_the_interpreter_ends_with_pools_in_use():
    done = python("""
        import numpy as np, fcdcc
        class Slow(fcdcc.Worker):
            def execute(self, task):
                import time
                time.sleep(0.02)
                yield from super().execute(task)
        pool = fcdcc.Pool.of([Slow(f"w{i}") for i in range(4)])
        x, w = np.ones((1, 2, 8, 8), np.float32), np.ones((4, 2, 3, 3), np.float32)
        layer = fcdcc.CodedConv(pool, x.shape, w, tolerate=1)
        layer.run(x)
        print("end")
    """, timeout=30)  # fmt: skip
    assert done.stdout == "end\n" and done.returncode == 0, done.stderr
