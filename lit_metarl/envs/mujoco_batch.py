"""Simulations of one MuJoCo model on a C++ thread pool: state, model fields, derived fields and pictures.

A thin layer over ``mujoco.batch.Batch`` (MuJoCo 3.17), which is bit-identical to a loop over ``mj_step`` at any number
of threads. Axes: ``E`` simulations, ``n`` selected simulations.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS, MODEL_FIELDS, Batch

from lit_metarl.envs.base import Array, EnvError
from lit_metarl.envs.rendering import gl_context

log = logging.getLogger(__name__)
if mujoco.get_mju_user_warning() is None:
    # Otherwise MuJoCo appends its warnings to MUJOCO_LOG.TXT in the working directory. Divergence is reported by us.
    mujoco.set_mju_user_warning(log.debug)


class BatchSimulation:
    """``E`` simulations of one model stepped together.

    Fields are live arrays ``[E, ...]``: state fields (``qpos``, ``qvel``, ``ctrl``) may be written; derived ones
    (``xpos``, ``cvel``) are read-only and, after :meth:`step`, describe the last evaluation of the dynamics *inside*
    the step, as ``mj_step`` leaves them and as Gymnasium's ``-v5`` environments read them.

    Args:
        model: the compiled model; each simulation may change its float fields (:meth:`set_model_fields`).
        num_sims: E.
        threads: threads of the pool, 0 for all CPUs of this process or, if that is less, ``OMP_NUM_THREADS``; never
            more than E.
        contact_forces: keep :attr:`contact_forces` current, which ``mj_step`` does not do. Costs about 6 µs per
            simulation in contact and one ``MjData`` (some 0.5 MB) per simulation.

    Attributes:
        contact_forces: ``cfrc_ext`` ``[E, nbody, 6]``: torque (N m) and force (N) of the contacts on each body, about
            the centre of mass of its tree. Zero after a reset. None unless asked for.
    """

    def __init__(self, model: Any, num_sims: int, threads: int = 0, contact_forces: bool = False) -> None:
        if num_sims < 1 or threads < 0:
            raise ValueError(f"num_sims must be positive and threads not negative, got {num_sims} and {threads}.")
        self.model = model
        self.num_sims = num_sims
        self.threads = min(threads or _available_cpus(), num_sims)
        # The contacts of a step survive it only where every simulation has its own MjData.
        self._batch = Batch(model, num_sims, self.threads, persistent=contact_forces)
        self._fields: dict[str, Array] = {}
        self._model_fields: dict[str, Array] = {}
        first = mujoco.mjtWarning.mjWARN_BADQPOS.value
        self._warnings = self._batch.warning[:, first : mujoco.mjtWarning.mjWARN_BADCTRL.value + 1, 1]
        self.motion = self._motion_view()
        self.contact_forces: Array | None = None
        if contact_forces:
            self.contact_forces = np.zeros((num_sims, model.nbody, 6))
            self._data = mujoco.MjData(model)
            self.field("ncon")
        self._renderer: _Renderer | None = None

    def _motion_view(self) -> Array:
        """``qpos`` and ``qvel`` as one live view ``[E, nq + nv]``: they are neighbours in MuJoCo's state vector."""
        start = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_TIME.value)
        return self._batch.state[:, start : start + self.model.nq + self.model.nv]

    def field(self, name: str) -> Array:
        """Live array ``[E, ...]`` of an ``MjData`` field; a derived one is zero until the next reset or step."""
        found = self._fields.get(name)
        if found is None:
            if name not in DATA_FIELDS:
                raise EnvError(f"{name!r} is not a field of MjData that a batch can show.")
            found = self._fields[name] = self._batch.bind(name)
        return found

    def model_field(self, name: str) -> Array:
        """Values in force of a model field: ``[E, ...]`` if simulations may differ, else the model's ``[...]``."""
        if name in self._model_fields:
            return self._model_fields[name]
        return model_value(self.model, name)

    def set_model_fields(self, fields: Mapping[str, Array], ids: Array | None = None) -> None:
        """Give simulations ``ids`` ``[n]`` (sorted; all if None) their own values, rows ``[n, ...]`` per field.

        The constants that MuJoCo derives from them (``mj_setConst``) follow. A field that was never named here keeps
        the value of the model. Names are those of :func:`settable_model_fields`.
        """
        for name, rows in fields.items():
            if name not in self._model_fields:
                if name not in settable_model_fields(self.model):
                    raise EnvError(f"{name!r} is not a model field that simulations may differ in.")
                self._model_fields[name] = self._batch.expand(name)
            self._model_fields[name][slice(None) if ids is None else ids] = rows
        if fields:
            self._batch.set_const(ids)

    def step(self, frame_skip: int) -> None:
        """Advance every simulation by ``frame_skip`` physics steps under its ``ctrl``.

        Raises ``mujoco.batch.SimulationError`` where MuJoCo itself reports an error; ask :meth:`diverged` for states
        that MuJoCo found bad and replaced by its defaults.
        """
        self._batch.step(nstep=frame_skip)
        if self.contact_forces is not None:
            self._update_contact_forces(self.contact_forces)

    def _update_contact_forces(self, forces: Array) -> None:
        """``mj_rnePostConstraint`` on the data of each simulation with contacts; without them the forces are zero."""
        forces[...] = 0.0
        # Equality constraints also enter cfrc_ext, so with them no simulation may be skipped.
        active = range(self.num_sims) if self.model.neq else np.flatnonzero(self._fields["ncon"]).tolist()
        for i in active:
            self._batch.get_data(i, self._data)
            # The model enters by its tree only, which simulations share.
            mujoco.mj_rnePostConstraint(self.model, self._data)
            forces[i] = self._data.cfrc_ext

    def reset(self, qpos: Array, qvel: Array, ids: Array | None = None) -> None:
        """Start simulations ``ids`` ``[n]`` (sorted; all if None) anew at ``qpos`` ``[n, nq]``, ``qvel`` ``[n, nv]``.

        Controls, warm starts, time and warnings go back to their defaults and the derived fields become current, as
        ``mj_resetData`` followed by ``mj_forward``.
        """
        rows = slice(None) if ids is None else ids
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.field("qpos")[rows] = qpos
        self.field("qvel")[rows] = qvel
        self._batch.forward(ids)
        if self.contact_forces is not None:
            self.contact_forces[rows] = 0.0

    def diverged(self) -> Array:
        """Simulations with a bad state: MuJoCo warned since their reset, or ``qpos`` or ``qvel`` is not finite."""
        # One any() and one all() in the common case: this runs at every step.
        if not self._warnings.any() and np.isfinite(self.motion).all():
            return _NONE
        return np.flatnonzero(self._warnings.any(axis=1) | ~np.isfinite(self.motion).all(axis=1))

    def state(self) -> torch.Tensor:
        """Full physics state ``[E, nstate]`` (``mjSTATE_INTEGRATION``, warm starts and controls included), a copy."""
        return torch.from_numpy(self._batch.state.copy())

    def load_state(self, state: torch.Tensor) -> None:
        """Inverse of :meth:`state`: the next step is bit-identical; derived fields stay stale until then."""
        if tuple(state.shape) != self._batch.state.shape:
            raise EnvError(
                f"The saved physics state has shape {tuple(state.shape)}, this simulator {self._batch.state.shape}: "
                "it was saved with another number of environments, another model or another MuJoCo."
            )
        self._batch.state[...] = state.numpy()
        self._batch.warning[...] = 0

    def render(self, index: int, width: int, height: int) -> Array:
        """Picture ``[height, width, 3]`` uint8 of simulation ``index`` by the camera ``track`` if the model has one."""
        if not 0 <= index < self.num_sims:
            raise EnvError(f"There is no environment {index} to render, only 0 to {self.num_sims - 1}.")
        model = self._batch.get_model(index)
        data = self._batch.get_data(index)
        mujoco.mj_forward(model, data)
        if self._renderer is None or self._renderer.size != (width, height):
            self.close()
            self._renderer = _Renderer(model, width, height)
        return self._renderer.draw(model, data)

    def close(self) -> None:
        """Release the renderer; the simulations stay usable."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


_NONE: Array = np.zeros(0, dtype=np.int64)


class _Renderer:
    """Off-screen OpenGL renderer (:func:`~lit_metarl.envs.rendering.gl_context`)."""

    def __init__(self, model: Any, width: int, height: int) -> None:
        self.size = (width, height)
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._gl = gl_context(width, height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150.value)
        # EGL shuts itself down at exit; contexts freed later fail noisily. Exit handlers run last in, first out.
        atexit.register(self.close)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=10_000)

    def draw(self, model: Any, data: Any) -> Array:
        """Draw ``data`` (after ``mj_forward``) as ``[height, width, 3]`` uint8."""
        width, height = self.size
        self._gl.make_current()
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, camera)
        track = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA.value, "track")
        if track >= 0:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, track
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, camera, everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, viewport, self._context)
        return np.flipud(picture).copy()

    def close(self) -> None:
        """Free the OpenGL objects."""
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def model_value(model: Any, name: str) -> Array:
    """The model's own value ``[...]`` of a field; ``opt.<name>`` is one of its options."""
    return np.asarray(getattr(model.opt if name.startswith("opt.") else model, name.removeprefix("opt.")))


def settable_model_fields(model: Any) -> list[str]:
    """Model fields that simulations may differ in: the float ones that the model has and MuJoCo does not derive.

    Integers are the model's structure or its options. Names that end in 0 and the subtree masses belong to the
    reference pose, from which ``mj_setConst`` derives them. The physics time step is left out because the reward and
    the frame rate rest on it.
    """
    names = []
    for name in sorted(MODEL_FIELDS - {"opt.timestep", "body_subtreemass"}):
        if name.endswith("0"):
            continue
        value = model_value(model, name)
        if value.dtype.kind == "f" and value.size:
            names.append(name)
    return names


def _available_cpus() -> int:
    """CPUs that this process may run on; no more than ``OMP_NUM_THREADS``, as of torch's and NumPy's threads."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cpus, int(asked)) if asked.isdecimal() and int(asked) > 0 else cpus
