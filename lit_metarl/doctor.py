"""``lit-metarl doctor``: checks of whether a training run would work on this machine, with remedies.

Imports the package's dependencies inside the checks only: a broken one is a finding, not a crash.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

OK, FAIL, NOTE = "ok", "FAIL", "note"
PACKAGES = ("torch", "lightning", "mujoco", "gymnasium", "dm_control", "mlflow")
OLDEST_PYTHON = (3, 11)
NAME_WIDTH = 28


class Line(NamedTuple):
    """Outcome of one check."""

    status: str  # OK, FAIL (a training run would not work) or NOTE (it would, without something)
    name: str
    text: str  # what was found; after a FAIL also the remedy


def main(arguments: list[str]) -> int:
    """Print one line per check; returns 0 if a training run would work here and 1 otherwise."""
    parser = argparse.ArgumentParser("lit-metarl doctor", description="Say whether a training run would work here.")
    parser.add_argument("--root", type=Path, default=Path("mlruns"), help="folder of the MLflow store (%(default)s)")
    root = parser.parse_args(arguments).root
    failures = 0
    for line in diagnose(root):
        failures += line.status == FAIL
        sys.stdout.write(f"{line.status:<6}{line.name:<{NAME_WIDTH}}{line.text}\n")
        sys.stdout.flush()  # the next check may take seconds
    verdict = f"{failures} checks failed: a training run would not work." if failures else "Ready to train."
    sys.stdout.write(f"\n{verdict}\n")
    return 1 if failures else 0


def diagnose(root: Path) -> Iterator[Line]:
    """Run the checks one by one; ``root`` is created if there is no store yet."""
    _quieten()
    requirements = declared_requirements()
    yield check_python(sys.version_info[:3])
    for package in PACKAGES:
        yield check_package(package, requirements)
    for name, build, packages in _simulators(requirements):
        yield check_simulator(name, build, install_command(packages, requirements))
    yield _guarded("rendering", check_rendering, "Training works without it.", NOTE)
    yield _guarded("device", check_device, f"Reinstall torch: {install_command(['torch'], requirements)}")
    yield _guarded("mlflow store", partial(check_store, root), install_command(["mlflow"], requirements))


def declared_requirements() -> dict[str, str]:
    """Requirements of the installed lit_metarl by package: ``{"mujoco": "mujoco>=3.17,<4", …}``; empty if unknown."""
    try:
        found = importlib.metadata.requires("lit_metarl") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    requirements = {}
    for text in found:
        match = re.match(r"([\w.-]+)(\[[\w,.-]+\])?\s*([^;]*)$", text)  # those with a marker are optional
        if match:
            name, extra, bounds = match.groups()
            # The metadata sorts "<4" before ">=3.17", which nobody writes.
            bounds = ",".join(sorted(bounds.strip().split(","), reverse=True))
            requirements[name.replace("-", "_")] = f"{name}{extra or ''}{bounds}"
    return requirements


def install_command(packages: Sequence[str], requirements: dict[str, str]) -> str:
    """The ``pip install`` that brings ``packages`` to the declared versions."""
    return "`pip install " + " ".join(f'"{requirements.get(name, name)}"' for name in packages) + "`"


def check_python(version: tuple[int, ...]) -> Line:
    """Python's version against the oldest that is supported."""
    text = ".".join(map(str, version)) + f" on {platform.system()} {platform.machine()}"
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Line(FAIL, "python", f"{text}: make an environment with Python {oldest} or newer.")
    return Line(OK, "python", text)


def check_package(name: str, requirements: dict[str, str]) -> Line:
    """Whether a package is installed in a version that lit_metarl declares, and can be imported."""
    remedy = install_command([name], requirements)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Line(FAIL, name, f"not installed: {remedy}")
    return check_version(name, version, requirements.get(name, name)) or _guarded(
        name, partial(_import_package, name, version), remedy
    )


def check_version(name: str, version: str, requirement: str) -> Line | None:
    """The FAIL line of a version outside ``requirement``, or None."""
    try:
        from packaging.requirements import Requirement
    except ImportError as error:  # comes with lightning and with mlflow
        return Line(FAIL, name, f"{version}, cannot be compared with {requirement} ({error}): `pip install packaging`")
    if Requirement(requirement).specifier.contains(version, prereleases=True):
        return None
    return Line(FAIL, name, f'{version} does not work with lit_metarl: `pip install "{requirement}"`')


def check_simulator(name: str, build: Callable[[], Any], remedy: str) -> Line:
    """Reset and step one environment of the factory that ``build`` returns, and time that."""
    return _guarded(name, partial(_try_simulator, name, build), remedy)


def check_rendering() -> Line:
    """Whether an off-screen picture can be drawn, and by which OpenGL backend."""
    from lit_metarl.envs.rendering import choose_backend, rendering_available

    problem = rendering_available()
    if problem is not None:
        return Line(NOTE, "rendering", f"{_flat(problem)} Training works without it.")
    return Line(OK, "rendering", f"off-screen, MUJOCO_GL={choose_backend()}")


def check_device() -> Line:
    """Name the device that ``accelerator: auto`` takes, and say whether bf16-mixed precision works there."""
    import torch

    from lit_metarl.settings import has_bf16_units

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        text = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} × {', '.join(names)}"
    else:
        text = f"CPU, {torch.get_num_threads()} threads"
    weight = torch.ones(8, 8, device=device, requires_grad=True)
    try:
        with torch.autocast(device, torch.bfloat16):
            product = weight @ weight
        product.float().sum().backward()
        works = product.dtype == torch.bfloat16
    except RuntimeError:
        works = False
    speed = "" if has_bf16_units(device) else " but is emulated, many times slower than 32-true"
    return Line(OK, "device", f"{text}; bf16-mixed {'works' + speed if works else 'does not work, use 32-true'}")


def check_store(root: Path) -> Line:
    """Open the MLflow store under ``root``, creating it if there is none, and read from it."""
    from lit_metarl.tracking import TrackingError, connect

    try:
        client = connect(root)
        experiments = len(client.search_experiments())
    except TrackingError as error:
        return Line(FAIL, "mlflow store", _flat(str(error)))  # its message names the remedy
    return Line(OK, "mlflow store", f"{client.tracking_uri}, writable, {experiments} experiments")


def _simulators(requirements: dict[str, str]) -> Iterator[tuple[str, Callable[[], Any], list[str]]]:
    batch = ["mujoco", "gymnasium"]  # the robots' model files are Gymnasium's
    try:
        from lit_metarl.envs.locomotion import ROBOTS

        robots = list(ROBOTS)
    except Exception:  # the line of the one robot says why
        robots = ["half_cheetah"]
    for robot in robots:
        yield f"mujoco/{robot}", partial(_factory, "locomotion", "MuJoCo", robot), batch
    yield "dm_control/cheetah/run", partial(_factory, "suite", "DMControl", "cheetah/run"), ["mujoco", "dm_control"]
    yield "gymnasium/Pendulum-v1", partial(_factory, "gym", "Gymnasium", "Pendulum-v1"), ["gymnasium"]


def _factory(module: str, name: str, argument: str) -> Any:
    return getattr(importlib.import_module(f"lit_metarl.envs.{module}"), name)(argument)


def _try_simulator(name: str, build: Callable[[], Any]) -> Line:
    import numpy as np

    start = time.perf_counter()
    env = build().make(1, 0)
    built = time.perf_counter()
    try:
        env.reset()
        result = env.step(np.zeros((1, env.spec.action_dim)))
    finally:
        env.close()
    milliseconds = 1e3 * (time.perf_counter() - built)
    if not (np.isfinite(result.obs).all() and np.isfinite(result.reward).all()):
        raise ValueError("the first step returns a value that is not finite")
    return Line(OK, name, f"reset and step {milliseconds:.1f} ms, built in {1e3 * (built - start):.0f} ms")


def _import_package(name: str, version: str) -> Line:
    start = time.perf_counter()
    importlib.import_module(name)
    return Line(OK, name, f"{version}, imported in {time.perf_counter() - start:.1f} s")


def _guarded(name: str, check: Callable[[], Line], remedy: str, status: str = FAIL) -> Line:
    """The line of ``check``; whatever it raises becomes a line of ``status`` that names ``remedy``."""
    try:
        return check()
    except Exception as error:  # broken installations fail in every way there is
        return Line(status, name, f"{type(error).__name__}: {_flat(str(error))}. Remedy: {remedy}")


def _flat(text: str) -> str:
    return " ".join(text.split()).removesuffix(".") + "." if text else ""


def _quieten() -> None:
    """Third parties' deprecations and telemetry would stand between the lines."""
    import logging
    import os
    import warnings

    warnings.simplefilter("ignore")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("absl").setLevel(logging.ERROR)
