"""Codes over convolution: generator blocks, recovery matrices, condition numbers, encoding and decoding of arrays.

A code cuts the input of a layer into k_a slabs and its filters into k_b banks, and mixes them for each of n subtasks with
generator blocks A_i (k_a x l_a) and B_i (k_b x l_b). A subtask computes l_a l_b convolutions. Any ``recovery_threshold``
subtasks determine the k_a k_b parts of the output.

>>> from fcdcc import codes
>>> code = codes.crme(4, 4, 6)
>>> code.recovery_threshold, code.tolerated
(4, 2)
>>> code.input_blocks.shape, code.recovery_matrix([0, 2, 3, 5]).shape
((6, 4, 2), (16, 16))
>>> round(code.condition([0, 1, 2, 3]), 2)
8.94

A code of your own is two arrays of blocks; it runs in :class:`fcdcc.CodedConv` as any other:

>>> import numpy as np
>>> own = codes.Code.from_generators(np.array([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [1.0]]]), np.ones((3, 1, 1)))
>>> own.kind, own.n, own.recovery_threshold
('custom', 3, 2)
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import _fcdcc
from ._arrays import Array, contiguous
from ._layer import Sizes, geometry

__all__ = [
    "FAMILIES", "Code", "Conditions", "chebyshev", "compare", "crme", "khatri_rao", "replication", "uncoded", "vandermonde",
]  # fmt: skip

#: The families that are known by name.
FAMILIES = ("crme", "chebyshev", "vandermonde", "khatri-rao", "replication", "uncoded")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Condition numbers of the recovery matrices of responder sets of one size."""

    #: One row of subtasks for each set, ``[sets, size]``.
    sets: Array
    #: Condition number of each set, ``[sets]``; infinite where a set does not determine the parts.
    values: Array
    #: Whether these are all sets of that size.
    exhaustive: bool

    @property
    def worst(self) -> float:
        """The largest."""
        return float(self.values.max())

    @property
    def median(self) -> float:
        """The median."""
        return float(np.median(self.values))


class Code:
    """A code; made by the functions of this module, or by :meth:`from_generators`."""

    def __init__(self, native: _fcdcc.Code) -> None:
        if not isinstance(native, _fcdcc.Code):
            raise TypeError("use codes.crme and its like, or Code.from_generators")
        self._native = native
        self._numbers = native.numbers

    @classmethod
    def family(cls, kind: str, k_a: int, k_b: int, n: int) -> Code:
        """The code of a family of :data:`FAMILIES`.

        Raises :class:`fcdcc.InvalidParameter` for parts on which the family does not exist (CRME: each 1 or even),
        :class:`fcdcc.Mismatch` when n subtasks cannot determine them.
        """
        return cls(_fcdcc.Code.family(kind, k_a, k_b, n))

    @classmethod
    def from_generators(cls, input_blocks: Any, filter_blocks: Any) -> Code:
        """The code with these generator blocks: A ``[n, k_a, l_a]`` and B ``[n, k_b, l_b]``.

        Its recovery threshold is the smallest size of which any set of subtasks determines the parts. Of sizes with more than
        2000 sets, 2000 random ones are looked at. It is decoded by the pseudo-inverse of the recovery matrix.

        Raises :class:`fcdcc.Mismatch` for blocks of other shapes, :class:`fcdcc.Singular` if even all subtasks do not
        determine the parts.
        """
        a = contiguous(input_blocks, np.float64, "input_blocks")
        b = contiguous(filter_blocks, np.float64, "filter_blocks")
        return cls(_fcdcc.Code.from_generators(a, b))

    @property
    def kind(self) -> str:
        """The family; ``custom`` for a code from generators."""
        return self._native.kind

    @property
    def n(self) -> int:
        """Number of subtasks."""
        return self._numbers[0]

    @property
    def k_a(self) -> int:
        """Parts of the input."""
        return self._numbers[1]

    @property
    def k_b(self) -> int:
        """Parts of the filters."""
        return self._numbers[2]

    @property
    def l_a(self) -> int:
        """Coded slabs of a subtask."""
        return self._numbers[3]

    @property
    def l_b(self) -> int:
        """Coded filter banks of a subtask."""
        return self._numbers[4]

    @property
    def recovery_threshold(self) -> int:
        """Number of subtasks of which any set suffices (delta)."""
        return self._numbers[5]

    @property
    def tolerated(self) -> int:
        """Number of subtasks that may be missing."""
        return self.n - self.recovery_threshold

    @property
    def input_blocks(self) -> Array:
        """A, ``[n, k_a, l_a]``."""
        return self._native.input_blocks

    @property
    def filter_blocks(self) -> Array:
        """B, ``[n, k_b, l_b]``."""
        return self._native.filter_blocks

    def recovery_matrix(self, subtasks: Sequence[int]) -> Array:
        """G of whole subtasks, ``[k_a k_b, len(subtasks) l_a l_b]``: results Z and parts Y fulfil Z = G^T Y.

        >>> G = crme(2, 4, 5).recovery_matrix([0, 1, 4])
        >>> G.shape
        (8, 12)
        """
        return self._native.recovery_matrix(list(subtasks))

    def condition(self, subtasks: Sequence[int]) -> float:
        """Condition number (2-norm) of G of whole subtasks; infinite where they do not determine the parts."""
        return self._native.condition(list(subtasks))

    def conditions(self, size: int | None = None, *, limit: int = 20000, samples: int = 2000, seed: int = 0) -> Conditions:
        """Condition numbers of the responder sets of ``size`` subtasks (by default the recovery threshold).

        Looks at all sets if there are at most ``limit``, else at ``samples`` random ones.

        >>> found = crme(4, 4, 6).conditions()
        >>> found.exhaustive, len(found.values), round(found.worst, 3), round(found.median, 3)
        (True, 15, 8.935, 4.192)
        """
        size = self.recovery_threshold if size is None else size
        if not 1 <= size <= self.n:
            raise ValueError(f"size is {size}: the code has {self.n} subtasks")
        exhaustive = math.comb(self.n, size) <= limit
        if exhaustive:
            sets = np.array(list(itertools.combinations(range(self.n), size)))
        else:
            rng = np.random.default_rng(seed)
            sets = np.array([np.sort(rng.choice(self.n, size, replace=False)) for _ in range(samples)])
        return Conditions(sets, np.array(self._native.conditions(sets.tolist())), exhaustive)

    def encode_input(
        self, x: Any, weight_shape: Sequence[int], *,
        stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1,
    ) -> Array:  # fmt: skip
        """The coded slabs of each subtask, ``[n, l_a, N, C, slab spatial...]``, in float64.

        ``x`` is ``[N, C, spatial...]``; it is padded, and cut along its first spatial axis into overlapping slabs.
        """
        x = contiguous(x, np.float64, "x")
        return self._native.encode_input(x, list(weight_shape), geometry(stride, padding, dilation, groups))

    def encode_filters(
        self, weight: Any, input_shape: Sequence[int], *,
        stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1,
    ) -> Array:  # fmt: skip
        """The coded filter banks of each subtask, ``[n, l_b, O', C/groups, kernel...]``, in float64.

        ``weight`` is ``[O, C/groups, kernel...]``; its output channels are cut into k_b banks.
        """
        weight = contiguous(weight, np.float64, "weight")
        return self._native.encode_filters(weight, list(input_shape), geometry(stride, padding, dilation, groups))

    def decode(
        self, results: Any, subtasks: Sequence[int], input_shape: Sequence[int], weight_shape: Sequence[int], *,
        stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1,
    ) -> Array:  # fmt: skip
        """The output of the layer, ``[N, O, spatial...]``, from the results of whole subtasks, in float64.

        ``results`` is ``[len(subtasks), l_a, l_b, N, O', spatial...]``: each slab of a subtask convolved with each bank.

        Raises :class:`fcdcc.Mismatch` for too few subtasks or other shapes, :class:`fcdcc.Singular`.

        >>> import numpy as np, fcdcc
        >>> rng = np.random.default_rng(0)
        >>> x, w = rng.normal(size=(1, 3, 12, 9)), rng.normal(size=(8, 3, 3, 3))
        >>> code = crme(4, 4, 6)
        >>> slabs, banks = code.encode_input(x, w.shape), code.encode_filters(w, x.shape)
        >>> chosen = [1, 2, 4, 5]
        >>> results = [[[fcdcc.convolve(s, b) for b in banks[i]] for s in slabs[i]] for i in chosen]
        >>> bool(np.allclose(code.decode(results, chosen, x.shape, w.shape), fcdcc.convolve(x, w)))
        True
        """
        results = contiguous(results, np.float64, "results")
        shapes = ([int(s) for s in input_shape], [int(s) for s in weight_shape])
        return self._native.decode(list(subtasks), results, shapes, geometry(stride, padding, dilation, groups))

    def __repr__(self) -> str:
        return f"Code({self.kind}, k_a={self.k_a}, k_b={self.k_b}, n={self.n}, threshold={self.recovery_threshold})"

    def __reduce__(self) -> Any:
        if self.kind == "custom":
            return (Code.from_generators, (self.input_blocks, self.filter_blocks))
        return (Code.family, (self.kind, self.k_a, self.k_b, self.n))


def crme(k_a: int, k_b: int, n: int) -> Code:
    """Circulant and rotation matrix embeddings (arXiv 1910.06515): any k_a k_b / 4 of n subtasks, for even parts."""
    return Code.family("crme", k_a, k_b, n)


def chebyshev(k_a: int, k_b: int, n: int) -> Code:
    """Orthogonal polynomial code at Chebyshev nodes (arXiv 1903.08326): any k_a k_b of n."""
    return Code.family("chebyshev", k_a, k_b, n)


def vandermonde(k_a: int, k_b: int, n: int) -> Code:
    """Real polynomial code at equally spaced points (arXiv 1705.10464): any k_a k_b of n."""
    return Code.family("vandermonde", k_a, k_b, n)


def khatri_rao(k_a: int, k_b: int, n: int) -> Code:
    """Random Khatri-Rao product code (arXiv 1907.05965): any k_a k_b of n, with probability 1."""
    return Code.family("khatri-rao", k_a, k_b, n)


def replication(k_a: int, k_b: int, n: int) -> Code:
    """Plain partitioning with copies: one copy of every part is needed."""
    return Code.family("replication", k_a, k_b, n)


def uncoded(k_a: int, k_b: int) -> Code:
    """Plain partitioning: every subtask is needed."""
    return Code.family("uncoded", k_a, k_b, k_a * k_b)


def compare(codes: Iterable[Code], **options: Any) -> list[tuple[Code, Conditions]]:
    """The condition numbers of several codes; ``options`` are those of :meth:`Code.conditions`."""
    return [(code, code.conditions(**options)) for code in codes]
