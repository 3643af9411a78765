"""The examples in docstrings and in the documentation."""

import doctest
import importlib.util
import pkgutil
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import fcdcc

MODULES = ["fcdcc"] + [
    f"fcdcc.{each.name}" for each in pkgutil.iter_modules(fcdcc.__path__) if each.name not in ("torch", "__main__", "_fcdcc")
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with what `fcdcc demo --write .` leaves there, as the documents tell their readers."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "fcdcc", "demo", "--write", "."], cwd=folder, check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name, demo, monkeypatch):
    monkeypatch.chdir(demo)
    module = importlib.import_module(name)
    # A name that another module exports is tested there.
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_there_are_examples():
    assert sum(len(test.examples) for name in MODULES for test in finder(name)) > 40


def finder(name):
    return doctest.DocTestFinder().find(importlib.import_module(name))


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.parametrize("path", ["README.md", "docs/python.md", "python/PYPI.md"])
def test_examples_of_documents(path, demo, monkeypatch):
    monkeypatch.chdir(demo)
    found = blocks(path)
    assert found, f"{path} has no block of Python"
    names: dict = {}
    for index, block in enumerate(found):
        needs_torch = block.startswith("# needs torch")
        if needs_torch and importlib.util.find_spec("torch") is None:
            continue
        exec(compile(block, f"{path}, block {index}", "exec"), names)


def test_every_public_name_is_there_and_documented():
    for name in fcdcc.__all__:
        value = getattr(fcdcc, name)
        assert name == "__version__" or value.__doc__, name
    with pytest.raises(AttributeError):
        fcdcc.nonsense  # noqa: B018
    assert dir(fcdcc) == sorted(fcdcc.__all__)
    text = (ROOT / "docs/python.md").read_text()
    missing = [name for name in fcdcc.__all__ if name not in text and name != "__version__"]
    assert not missing, f"docs/python.md does not name {missing}"
