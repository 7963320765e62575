"""Off-screen rendering: choice of the OpenGL backend, a probe that says why there is no picture, and mp4 files.

MuJoCo, dm_control and Gymnasium read ``MUJOCO_GL`` once, when they are imported. On a machine without display the
default (GLFW) fails, so :func:`choose_backend` has to run before the first of them is imported.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray
BACKEND_VARIABLE = "MUJOCO_GL"
BACKENDS = ("egl", "osmesa", "glfw")
DISABLED = ("off", "disable", "disabled", "false", "0")
REMEDY = (
    "On Debian or Ubuntu: `apt install libegl1 libgl1-mesa-dri` (EGL in software, needs no GPU) "
    "or `apt install libosmesa6`; then start again, or choose a backend with MUJOCO_GL=egl|osmesa|glfw."
)
_EGL_PLATFORM_DEVICE = 0x313F  # EGL_PLATFORM_DEVICE_EXT of the extension EGL_EXT_platform_device


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` for this machine; call it before mujoco, dm_control or Gymnasium's MuJoCo are imported.

    A value set by the user is kept. On Linux without a display: ``egl``, else ``osmesa``, else ``disabled``, with
    which everything but pictures works (a missing library would otherwise fail the *import* of dm_control).

    Returns:
        The backend; ``default`` where the simulator's own choice is right (a display, macOS, Windows).
    """
    chosen = os.environ.get(BACKEND_VARIABLE, "").strip().lower()
    if chosen:
        return chosen
    if sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return "default"
    backend = "egl" if _egl_works() else "osmesa" if _loads("libOSMesa.so.8", "libOSMesa.so") else "disabled"
    os.environ[BACKEND_VARIABLE] = backend
    return backend


def gl_context(width: int, height: int) -> Any:
    """Off-screen OpenGL context of MuJoCo, on the backend that was chosen or, where there is a display, any that works.

    Unlike what MuJoCo offers under ``mujoco.GLContext`` it does not depend on ``MUJOCO_GL`` at the time of the import.
    Raises ``EnvError`` with the remedy if there is none.
    """
    from lit_metarl.envs.base import EnvError  # brings torch, which a choice of backend does not need

    chosen = choose_backend()
    if chosen in DISABLED:
        raise EnvError(f"Rendering is switched off by {BACKEND_VARIABLE}={chosen}. {REMEDY}")
    backends = (chosen,) if chosen in BACKENDS else BACKENDS if sys.platform == "linux" else ("gl_context",)
    failures = []
    for backend in backends:
        if backend == "glfw" and sys.platform == "linux" and not os.environ.get("DISPLAY"):
            failures.append("glfw: there is no display")
            continue
        try:
            return importlib.import_module(f"mujoco.{backend}").GLContext(width, height)
        except Exception as error:  # each backend fails in its own way: ImportError, AttributeError, GLError ...
            failures.append(f"{backend}: {type(error).__name__}: {error}")
    raise EnvError(f"No OpenGL backend works, so nothing can be rendered. {REMEDY} Tried {'; '.join(failures)}.")


@functools.cache
def rendering_available() -> str | None:
    """Draw a one-geom scene; None if that works, else the reason and the remedy in one line. Imports mujoco."""
    backend = choose_backend()
    if backend in DISABLED:
        return f"no video: {BACKEND_VARIABLE}={backend}, no off-screen OpenGL library was found or wanted. {REMEDY}"
    try:
        import mujoco

        model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
        with mujoco.Renderer(model, height=16, width=16) as renderer:
            renderer.update_scene(mujoco.MjData(model))
            renderer.render()
    except Exception as error:  # each backend fails with an exception class of its own
        return f"no video: {BACKEND_VARIABLE}={backend} fails with {type(error).__name__}: {error}. {REMEDY}"
    return None


def write_video(path: str | Path, frames: Iterable[Array], fps: float) -> None:
    """Write an mp4 (H.264, yuv420p), which browsers and MLflow show; frames are encoded as they come.

    Args:
        path: file to write; its folder is made if missing.
        frames: pictures ``[height, width, 3]`` uint8 of one size, height and width even (H.264 halves the colours).
        fps: frames per second; ``1 / spec.frame_dt`` plays in real time.

    Raises:
        ValueError: no frame, a frame of another shape or type, an odd size, or ``fps`` not positive.
        OSError: the encoder is missing or fails; the message says what to install.
    """
    path = Path(path)
    if not fps > 0:
        raise ValueError(f"A video needs a positive number of frames per second, but fps is {fps}.")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"There are no frames to write to {path}.")
    _check_frame(first, first.shape, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import imageio.v2 as imageio

        # The default macro block of 16 would silently resize a picture.
        writer = imageio.get_writer(path, format="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
        with writer:
            writer.append_data(first)
            for number, frame in enumerate(frames, start=1):
                _check_frame(frame, first.shape, number)
                writer.append_data(frame)
    except (ImportError, RuntimeError, OSError) as error:
        raise OSError(f"Cannot write {path}: {error}. Remedy: `pip install imageio imageio-ffmpeg`.") from error


def picture_kwargs(creator: Any, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """``render_mode`` for a Gymnasium class that can draw, unless the user chose a mode himself."""
    metadata = getattr(creator, "metadata", None)  # of a gymnasium.Wrapper a property: its environment is not made yet
    modes = metadata.get("render_modes", []) if isinstance(metadata, Mapping) else []
    if "render_mode" in kwargs or "rgb_array" not in modes:
        return {}
    parameters = inspect.signature(creator).parameters.values()
    takes = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"render_mode": "rgb_array"} if takes else {}


def fit_frame(frame: Array, width: int, height: int) -> Array:
    """Scale ``[h, w, 3]`` uint8 to ``[height, width, 3]``, padded with black where the proportions differ."""
    if frame.shape == (height, width, 3):
        return frame
    from PIL import Image, ImageOps

    return np.array(ImageOps.pad(Image.fromarray(frame), (width, height)))


def _check_frame(frame: Array, shape: tuple[int, ...], number: int) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"Frame {number} must be [height, width, 3] uint8, but is {frame.shape} {frame.dtype}.")
    if frame.shape != shape:
        raise ValueError(f"Frame {number} has shape {frame.shape}, but the first has {shape}.")
    if frame.shape[0] % 2 or frame.shape[1] % 2:
        raise ValueError(f"H.264 needs an even height and width, but the frames are {frame.shape[:2]}.")


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _egl_works() -> bool:
    """Whether an EGL device can be initialised: a container may have libEGL and no driver behind it."""
    if not _loads("libEGL.so.1"):
        return False
    egl = ctypes.CDLL("libEGL.so.1")
    address = egl.eglGetProcAddress
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query, display_of = address(b"eglQueryDevicesEXT"), address(b"eglGetPlatformDisplayEXT")
    if not query or not display_of:
        return False
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, integer, pointer, pointer)(query)
    get_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_of)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices, count = (pointer * 16)(), integer()
    if not query_devices(16, ctypes.cast(devices, pointer), ctypes.cast(ctypes.byref(count), pointer)):
        return False
    displays = (get_display(_EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)
