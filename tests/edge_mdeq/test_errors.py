"""The errors: one family, and a hint where an optional dependency is missing."""

from __future__ import annotations

import json

import pytest

from edge_mdeq import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_every_error_belongs_to_the_family(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.EdgeMdeqError)


def test_require_returns_an_installed_module() -> None:
    assert errors.require("json", "train", "anything") is json


def test_require_names_purpose_module_and_extra_of_what_is_missing() -> None:
    with pytest.raises(
        errors.MissingExtraError,
        match=r"reading minds needs the module 'telepathy'.*pip install 'edge-mdeq\[camera\]'",
    ):
        errors.require("telepathy", "camera", "reading minds")
