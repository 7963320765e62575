"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_metarl.envs.rendering import choose_backend
from lit_metarl.tracking import store

choose_backend()  # before any test imports mujoco
# Of two test processes on two CPUs, threads would wait for one another, and spin meanwhile: twice the CPU time.
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    """Whatever a test writes relative to the working directory stays out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _one_migration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores are copies of the first: MLflow takes 3 s to migrate an empty database, and 200 tests begin with one.

    A process that a test starts makes its own.
    """
    first, migrate = tmp_path_factory.getbasetemp() / "first.db", store._migrate

    def copy(database: Path, artifacts: str) -> None:
        if not first.exists():
            migrate(first, "artifacts")
        shutil.copyfile(first, database)
        state = store._read_state(database)
        assert state is not None
        store._rewrite_locations(database, state, artifacts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_migrate", copy)
        yield
