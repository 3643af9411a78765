"""Uses of the package as type checkers see them; not run."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import fcdcc
from fcdcc import codes


async def uses(x: NDArray[np.float32]) -> None:
    pool: fcdcc.Pool = fcdcc.Pool.cpu(6, faults=["0:crash", fcdcc.Fault.slow([1], 2.0)])
    prepared = fcdcc.Model("m.onnx").prepare(pool, tolerate=2, progress=lambda done, total, layer: None)
    run: fcdcc.ModelRun = prepared.run({"x": x}, deadline=1.0)
    first: NDArray[Any] = run.outputs[0]
    reports: list[fcdcc.LayerReport] = run.layers
    outcomes: list[str] = [row.outcome for row in reports[0].workers]
    again: fcdcc.ModelRun = await prepared.run_async(x)
    layer = fcdcc.CodedConv(pool, x.shape, first, stride=(1, 1), code=codes.crme(4, 4, 6))
    output: NDArray[Any] = layer(x).output
    worst: float = layer.code.conditions().worst
    try:
        layer.run(x, cancel=fcdcc.CancelToken())
    except fcdcc.Shortfall as error:
        missing: int = error.total - error.arrived
        print(missing, outcomes, again.total, output.shape, worst)


class Own(fcdcc.Worker):
    def compute(self, shape: fcdcc.SubtaskShape, slab: NDArray[Any], bank: NDArray[Any]) -> NDArray[Any]:
        return fcdcc.convolve(slab, bank, stride=shape.stride)
