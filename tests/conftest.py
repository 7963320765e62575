"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest

from lit_metarl.envs.rendering import choose_backend

choose_backend()  # before any test imports mujoco


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    """Whatever a test writes relative to the working directory stays out of the checkout."""
    monkeypatch.chdir(tmp_path)
