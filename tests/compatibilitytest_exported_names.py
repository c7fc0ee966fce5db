"""The public API: names come with a changelog entry, and go with a deprecation."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

KEPT = Path(__file__).with_name("exported_names.txt")
PACKAGES = ("edge_mdeq", "edge_mdeq.bundle", "edge_mdeq.errors", "mdeq_export", "mdeq_runtime")


def exported() -> list[str]:
    """``package.name``, and of callables the parameters, sorted."""
    found = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found.append(f"{package}.{name}{parameters(getattr(module, name))}")
    return sorted(found)


def parameters(value: object) -> str:
    """Names and order of what it takes; a star where only names are taken, = where it may lack."""
    if not callable(value) or (isinstance(value, type) and issubclass(value, Exception)):
        return ""
    shown, named = [], False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind == parameter.KEYWORD_ONLY and not named:
            shown, named = [*shown, "*"], True
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        optional = "" if parameter.default is parameter.empty else "="
        shown.append(f"{prefix.get(parameter.kind, '')}{parameter.name}{optional}")
    return f"({', '.join(shown)})"


def test_the_exported_names_are_those_that_are_promised() -> None:
    """If this fails on purpose: docs/compatibility.md, then write the list anew (last line)."""
    pytest.importorskip("onnx_ir")
    pytest.importorskip("torch")
    kept, now = KEPT.read_text().splitlines(), exported()
    gone, new = sorted(set(kept) - set(now)), sorted(set(now) - set(kept))
    assert not gone, f"promised, and changed or gone: {gone}"
    assert not new, f"new, and not yet promised: {new}"


def test_the_list_is_sorted_and_has_each_name_once() -> None:
    kept = KEPT.read_text().splitlines()
    assert kept == sorted(set(kept))


def test_parameters_are_told_by_name_order_and_kind() -> None:
    def one(a: int, b: int = 1, *, c: int = 2, **rest: int) -> None: ...

    assert parameters(one) == "(a, b=, *, c=, **rest)"


if __name__ == "__main__":
    KEPT.write_text("\n".join(exported()) + "\n")
