"""The command in the wheel, as the binary: exit statuses, one line of error, no tools of Rust."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import LENET, ROOT

COMMAND = pathlib.Path(sys.executable).with_name("fcdcc")


def fcdcc(*arguments, **options):
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/tmp")}, **options,
    )  # fmt: skip


def test_the_demo_runs_anywhere(tmp_path):
    done = fcdcc("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"accuracy 99.78 %" in done.stdout and b"identical" in done.stdout


def test_arrays_go_in_and_out(tmp_path, rng):
    x, w = rng.normal(size=(1, 2, 9, 9)).astype(np.float32), rng.normal(size=(4, 2, 3, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "w.npy", w)
    # A file, and standard output, whose last bytes are no line.
    for output in ("y.npy", "-"):
        done = fcdcc("conv", "--input", "x.npy", "--weight", "w.npy", "--output", output, "--fault", "1,4:crash", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if output == "-":
            (tmp_path / "y.npy").write_bytes(done.stdout)
        import fcdcc as library

        assert np.allclose(np.load(tmp_path / "y.npy"), library.convolve(x, w), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["conv", "--input", "missing.npy", "--weight", "w.npy", "--output", "y.npy"], 2),
        (["nonsense"], 2),
        (["run", LENET, "--input", "x.npy", "--fault", "0,1,2:crash", "--on-shortfall", "fail"], 3),
        (["run", LENET, "--input", "x.npy", "--max-error", "1e-12"], 4),
    ],
)
def test_exit_statuses_and_single_lines(tmp_path, arguments, status):
    np.save(tmp_path / "x.npy", np.ones((1, 1, 32, 32), np.float32))
    done = fcdcc(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    if status:
        errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and not (tmp_path / "y.npy").exists()


def test_what_needs_further_features_is_there():
    assert fcdcc("worker", "--help").returncode == 0
    assert b"unrecognized" not in fcdcc("serve", "--help").stderr
    done = fcdcc("bench", "--virtual", "--layers", "lenet5/conv2", "--trials", "2", "--output", "/nonexistent/x")
    assert done.returncode == 2


def test_it_is_a_module_too():
    done = subprocess.run([sys.executable, "-m", "fcdcc", "plan", LENET, "--json"], capture_output=True, timeout=120, cwd=ROOT)
    assert done.returncode == 2 and b"shape" in done.stderr
    done = subprocess.run([sys.executable, "-m", "fcdcc", "devices", "--json"], capture_output=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and json.loads(done.stdout) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_signals_end_it(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 1, 32, 32), np.float32))
    arguments = [
        "run",
        str(LENET),
        "--input",
        "x.npy",
        "--fault",
        "all:delay=60s",
        "--deadline",
        "100s",
        "--on-shortfall",
        "fail",
    ]
    process = subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(1.5)  # past its start, of which it says nothing
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    worker = subprocess.Popen(
        [COMMAND, "worker", "--listen", "tcp/127.0.0.1:0", "--insecure"], stderr=subprocess.PIPE, cwd=tmp_path
    )
    time.sleep(2.0)
    if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    else:
        pytest.fail(worker.stderr.read().decode())
