"""PyTorch: coded convolutions as modules. Needs torch, which ``pip install 'fcdcc[torch]'`` brings.

:class:`CodedConv1d`, :class:`CodedConv2d` and :class:`CodedConv3d` compute what ``torch.nn.Conv1d`` and its like compute, on
the workers of a pool. :func:`encode_model` replaces the convolutions of a model. For inference: the outputs carry no
gradients, and a module that is asked for them says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

try:
    import torch
except ImportError as error:  # pragma: no cover - depends on the environment
    raise ImportError("fcdcc.torch needs PyTorch: pip install 'fcdcc[torch]'") from error

from ._layer import CodedConv, Run
from ._report import LayerReport

if TYPE_CHECKING:
    from ._pool import Pool

__all__ = ["CodedConv1d", "CodedConv2d", "CodedConv3d", "encode_model"]

#: For how many input shapes a module keeps a prepared layer; each has its coded filters on the workers.
KEPT_SHAPES = 4


class _CodedConv(torch.nn.Module):
    """A convolution on the workers of a pool, prepared for each shape of input that comes."""

    _of: ClassVar[type[torch.nn.Module]]

    def __init__(self, conv: torch.nn.Module, pool: Pool, **options: Any) -> None:
        super().__init__()
        _check(conv, self._of)
        self._conv: Any = [conv]  # in a list, so that its parameters are not this module's
        self._pool = pool
        self._options = options
        self._weight = _array(conv.weight).copy()
        self._bias = None if conv.bias is None else _array(conv.bias).copy()
        self._layers: OrderedDict[tuple[int, ...], CodedConv] = OrderedDict()
        self._lock = threading.Lock()
        self._run: Run | None = None

    @classmethod
    def from_conv(cls, conv: torch.nn.Module, pool: Pool, **options: Any) -> _CodedConv:
        """The coded form of a convolution of PyTorch; ``options`` are those of :class:`fcdcc.CodedConv`.

        Filters are copied: later changes of ``conv`` have no effect.
        """
        return cls(conv, pool, **options)

    @property
    def report(self) -> LayerReport | None:
        """The report of the last run."""
        return None if self._run is None else self._run.report

    @property
    def conv(self) -> torch.nn.Module:
        """The convolution that this module was made from."""
        original: torch.nn.Module = self._conv[0]
        return original

    def _layer(self, shape: tuple[int, ...]) -> CodedConv:
        with self._lock:
            layer = self._layers.pop(shape, None)
            if layer is None:
                conv: Any = self.conv
                padding = _padding(conv)
                layer = CodedConv(
                    self._pool, shape, self._weight, self._bias, stride=list(conv.stride), padding=padding,
                    dilation=list(conv.dilation), groups=conv.groups, **self._options,
                )  # fmt: skip
                while len(self._layers) >= KEPT_SHAPES:
                    self._layers.popitem(last=False)
            self._layers[shape] = layer
            return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` is ``[N, C, spatial...]``, or without N as in PyTorch; the output has its type and device."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("coded convolutions compute no gradients: call the model within torch.no_grad()")
        axes = self._weight.ndim
        batched = x if x.ndim == axes else x.unsqueeze(0)
        given = _array(batched).astype(self._weight.dtype, copy=False)
        run = self._run = self._layer(given.shape).run(given)
        output = torch.from_numpy(run.output).to(device=x.device, dtype=x.dtype)
        return output if x.ndim == axes else output.squeeze(0)

    def extra_repr(self) -> str:
        """The convolution and its workers."""
        return f"{self.conv}, {len(self._pool)} workers"


class CodedConv1d(_CodedConv):
    """``torch.nn.Conv1d`` on the workers of a pool."""

    _of = torch.nn.Conv1d


class CodedConv2d(_CodedConv):
    """``torch.nn.Conv2d`` on the workers of a pool."""

    _of = torch.nn.Conv2d


class CodedConv3d(_CodedConv):
    """``torch.nn.Conv3d`` on the workers of a pool."""

    _of = torch.nn.Conv3d


def encode_model(module: torch.nn.Module, pool: Pool, **options: Any) -> list[str]:
    """Replaces every convolution within ``module`` by its coded form, and returns their names.

    Convolutions that cannot be coded (padding other than zeros) stay as they are. ``options`` are those of
    :class:`fcdcc.CodedConv`; the name of each layer is its name in the module.
    """
    replaced = []
    for name, child in list(module.named_modules()):
        coded = next((kind for kind in (CodedConv1d, CodedConv2d, CodedConv3d) if type(child) is kind._of), None)
        if coded is None or getattr(child, "padding_mode", "zeros") != "zeros":
            continue
        if name == "":
            raise ValueError("the module is a convolution itself: use CodedConv2d.from_conv and its like")
        parent_name, _, own = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        setattr(parent, own, coded.from_conv(child, pool, **{"name": name, **options}))
        replaced.append(name)
    return replaced


def _check(conv: torch.nn.Module, expected: type[torch.nn.Module]) -> None:
    if not isinstance(conv, expected):
        raise TypeError(f"{type(conv).__name__} is no {expected.__name__}")
    if getattr(conv, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"padding_mode is {conv.padding_mode!r}: only zeros can be coded")


def _array(tensor: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """The values of a tensor, float64 if it has them, else float32; shared where that is possible."""
    tensor = tensor.detach().cpu()
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    array: np.ndarray[Any, np.dtype[Any]] = wide.contiguous().numpy()
    return array


def _padding(conv: Any) -> list[int]:
    """Padding as in ONNX: begins, then ends."""
    if conv.padding == "valid":
        return [0] * (2 * len(conv.kernel_size))
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return list(conv.padding) * 2
