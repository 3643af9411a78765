"""Codes as arrays, against numpy."""

import itertools
import pickle

import numpy as np
import pytest
from conftest import assert_close

import fcdcc
from fcdcc import codes

CODES = [
    codes.crme(4, 4, 6),
    codes.crme(2, 8, 7),
    codes.crme(1, 4, 4),
    codes.chebyshev(2, 2, 6),
    codes.vandermonde(3, 2, 8),
    codes.khatri_rao(2, 3, 8),
    codes.replication(2, 1, 6),
    codes.uncoded(2, 2),
]


def kronecker(code, subtasks):
    """G from the blocks, by its definition."""
    a, b = code.input_blocks, code.filter_blocks
    columns = [np.kron(a[i][:, p], b[i][:, r]) for i in subtasks for p in range(code.l_a) for r in range(code.l_b)]
    return np.array(columns).T


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_matrices_and_conditions_are_those_of_the_blocks(code):
    for subtasks in itertools.islice(itertools.combinations(range(code.n), code.recovery_threshold), 10):
        matrix = code.recovery_matrix(subtasks)
        assert np.allclose(matrix, kronecker(code, subtasks))
        if code.kind != "replication":
            assert code.condition(subtasks) == pytest.approx(np.linalg.cond(matrix), rel=1e-6)
    if code.recovery_threshold > 1:
        assert code.condition(range(code.recovery_threshold - 1)) > 1e12 or code.kind == "replication"


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_encoded_and_decoded_layers_are_convolutions(code, rng):
    geometry = {"stride": 2, "padding": (1, 0, 1, 1), "groups": 2}
    x, w = rng.normal(size=(2, 4, 21, 9)), rng.normal(size=(16, 2, 3, 2))
    slabs = code.encode_input(x, w.shape, **geometry)
    banks = code.encode_filters(w, x.shape, **geometry)
    assert slabs.shape[:4] == (code.n, code.l_a, 2, 4) and banks.shape[:2] == (code.n, code.l_b)
    chosen = list(range(code.n - code.recovery_threshold, code.n))
    results = [[[fcdcc.convolve(slab, bank, stride=2, groups=2) for bank in banks[i]] for slab in slabs[i]] for i in chosen]
    expected = fcdcc.convolve(x, w, **geometry)
    assert_close(code.decode(results, chosen, x.shape, w.shape, **geometry), expected, 1e-8)
    # Results under the names of other subtasks decode to something else.
    if code.kind not in ("uncoded", "replication") and code.tolerated:
        wrong = code.decode(results, list(range(code.recovery_threshold)), x.shape, w.shape, **geometry)
        assert not np.allclose(wrong, expected)
    with pytest.raises(fcdcc.Mismatch):
        code.decode(results[:-1], chosen, x.shape, w.shape, **geometry)
    if code.recovery_threshold > 1 and code.kind not in ("replication", "uncoded"):
        with pytest.raises(fcdcc.Mismatch, match="wait for more results"):
            code.decode(results[:-1], chosen[:-1], x.shape, w.shape, **geometry)


def test_the_papers_condition_numbers():
    """arXiv 2411.01579 compares families at n = 20, delta = 16."""
    known = {(4, 4, 5): (2.236, 2.236), (4, 4, 6): (8.935, 4.192), (4, 8, 10): (29.21, 6.616)}
    for (k_a, k_b, n), (worst, median) in known.items():
        found = codes.crme(k_a, k_b, n).conditions()
        assert found.exhaustive
        assert (found.worst, found.median) == (pytest.approx(worst, rel=1e-3), pytest.approx(median, rel=1e-3))
    ours, theirs = codes.crme(8, 8, 20).conditions(limit=5000), codes.vandermonde(4, 4, 20).conditions(samples=50, limit=100)
    assert not theirs.exhaustive and len(theirs.values) == 50
    assert ours.worst < 1600 and theirs.median > 1e6


def test_generators_make_codes_and_bad_ones_are_refused(rng):
    family = codes.crme(4, 4, 6)
    code = codes.Code.from_generators(family.input_blocks, family.filter_blocks)
    assert (code.kind, code.n, code.recovery_threshold, code.l_a) == ("custom", 6, 4, 2)
    assert code.condition([0, 1, 2, 3]) == pytest.approx(family.condition([0, 1, 2, 3]))
    for each in (code, family):
        copy = pickle.loads(pickle.dumps(each))
        assert np.array_equal(copy.input_blocks, each.input_blocks) and copy.kind == each.kind
    with pytest.raises(fcdcc.Singular) as singular:
        codes.Code.from_generators(np.ones((3, 2, 1)), np.ones((3, 1, 1)))
    assert singular.value.subtasks == [0, 1, 2]
    with pytest.raises(fcdcc.Mismatch):
        codes.Code.from_generators(np.ones((3, 2)), np.ones((3, 1, 1)))
    with pytest.raises(fcdcc.Mismatch) as counts:
        codes.Code.from_generators(np.ones((3, 2, 1)), np.ones((4, 1, 1)))
    assert (counts.value.got, counts.value.expected) == (4, 3)
    with pytest.raises(fcdcc.BadInput):
        codes.crme(3, 4, 6)
    with pytest.raises(fcdcc.BadInput, match="subtask"):
        family.condition([0, 6])
    with pytest.raises(fcdcc.BadInput, match="twice"):
        family.recovery_matrix([1, 1])
    with pytest.raises(ValueError, match="size"):
        family.conditions(7)
    assert [repr(code) for code, _ in codes.compare([family])] == ["Code(crme, k_a=4, k_b=4, n=6, threshold=4)"]
