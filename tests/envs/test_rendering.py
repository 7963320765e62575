"""Choice of the OpenGL backend in a fresh process, and mp4 files that can be read back."""

import importlib
import os
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from lit_metarl.envs import rendering
from lit_metarl.envs.base import EnvError
from lit_metarl.envs.rendering import (
    choose_backend,
    fit_frame,
    gl_context,
    picture_kwargs,
    rendering_available,
    write_video,
)


def in_fresh_process(code, **variables):
    """Standard output of ``code`` run by a new interpreter, which has imported no simulator and has no display."""
    hidden = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | variables
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


CHOOSE = "from lit_metarl.envs.rendering import *; import os, sys; "
SHOW = "print(choose_backend(), os.environ.get('MUJOCO_GL'), 'mujoco' in sys.modules)"


def test_a_user_s_choice_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.skipif(sys.platform != "linux", reason="the choice concerns Linux without a display")
@pytest.mark.parametrize(
    ("egl", "osmesa", "expected"), [(True, True, "egl"), (False, True, "osmesa"), (False, False, "disabled")]
)
def test_order_of_backends_without_a_display(monkeypatch, egl, osmesa, expected):
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering, "_egl_works", lambda: egl)
    monkeypatch.setattr(rendering, "_loads", lambda *names: osmesa)
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "")  # restored by monkeypatch whatever the call writes
    assert choose_backend() == expected
    assert os.environ["MUJOCO_GL"] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the choice concerns Linux without a display")
def test_choice_is_made_without_importing_mujoco_and_leaves_a_display_alone():
    backend, variable, imported = in_fresh_process(CHOOSE + SHOW).split()
    assert backend == variable
    assert backend in ("egl", "osmesa", "disabled")
    assert imported == "False"
    assert in_fresh_process(CHOOSE + SHOW, DISPLAY=":0") == "default None False"


def test_without_opengl_the_simulators_work_and_the_reason_is_told():
    code = (
        CHOOSE + "from lit_metarl.envs.suite import DMControl; env = DMControl('cheetah/run').make(1, 0);"
        "env.reset(); print(rendering_available())"
    )
    reason = in_fresh_process(code, MUJOCO_GL="disabled")
    assert "MUJOCO_GL=disabled" in reason
    assert "apt install libegl1 libgl1-mesa-dri" in reason


@pytest.mark.skipif(sys.platform != "linux", reason="GLFW without a display fails on Linux")
def test_a_backend_that_fails_is_named_with_a_remedy():
    reason = in_fresh_process(CHOOSE + "print(rendering_available())", MUJOCO_GL="glfw")
    assert "MUJOCO_GL=glfw fails with" in reason
    assert "apt install" in reason


def moving_square(count=6, height=50, width=66):  # no multiples of the encoder's block of 16
    for number in range(count):
        frame = np.zeros((height, width, 3), dtype=np.uint8)
        frame[8:40, 8 * number : 8 * number + 16] = (255, 0, 0)
        yield frame


def test_written_video_can_be_read_back(tmp_path):
    import imageio_ffmpeg

    path = tmp_path / "videos" / "square.mp4"
    write_video(path, moving_square(), fps=25)
    assert imageio_ffmpeg.count_frames_and_secs(path) == (6, pytest.approx(6 / 25))
    decode = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(decode, capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, dtype=np.uint8).reshape(6, 50, 66, 3)
    for written, read in zip(moving_square(), frames, strict=True):
        assert np.abs(written.astype(int) - read).mean() < 12  # H.264 is lossy and halves the colours


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 25, "no frames"),
        (list(moving_square()), 0, "positive number of frames per second"),
        ([np.zeros((48, 64), np.uint8)], 25, r"Frame 0 must be \[height, width, 3\]"),
        ([np.zeros((48, 64, 3))], 25, "uint8, but is .* float64"),
        ([np.zeros((48, 64, 4), np.uint8)], 25, r"Frame 0 must be .* but is \(48, 64, 4\)"),
        ([np.zeros((47, 64, 3), np.uint8)], 25, "even height and width"),
        ([np.zeros((48, 63, 3), np.uint8)], 25, "even height and width"),
        ([np.zeros((48, 64, 3), np.uint8), np.zeros((48, 32, 3), np.uint8)], 25, "Frame 1 has shape"),
    ],
)
def test_bad_frames_are_refused(tmp_path, frames, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "bad.mp4", frames, fps)


@pytest.mark.parametrize("missing", ["imageio", "imageio_ffmpeg"])
def test_missing_encoder_is_an_os_error_with_a_remedy(tmp_path, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; import numpy as np\n"
        "from lit_metarl.envs.rendering import write_video\n"
        f"try: write_video({str(tmp_path / 'none.mp4')!r}, [np.zeros((48, 64, 3), np.uint8)], fps=25)\n"
        "except OSError as error: print(error)"
    )
    assert "pip install imageio imageio-ffmpeg" in in_fresh_process(code)


@pytest.mark.parametrize(
    ("platform", "variables", "tried"),
    [
        ("linux", {"DISPLAY": ":0"}, ["egl", "osmesa", "glfw"]),
        ("linux", {"MUJOCO_GL": "osmesa"}, ["osmesa"]),
        ("linux", {"MUJOCO_GL": "glfw", "DISPLAY": ":0"}, ["glfw"]),
        ("linux", {"MUJOCO_GL": "glfw"}, []),
        ("linux", {"MUJOCO_GL": "off", "DISPLAY": ":0"}, []),
        ("darwin", {}, ["gl_context"]),
        ("darwin", {"MUJOCO_GL": "glfw"}, ["glfw"]),
    ],
)
def test_backends_that_are_tried_for_a_picture(monkeypatch, platform, variables, tried):
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked = []

    def absent(module):
        asked.append(module)
        raise ImportError(f"no {module}")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        patch.setattr(importlib, "import_module", absent)
        with pytest.raises(EnvError) as error:
            gl_context(64, 48)
    assert asked == [f"mujoco.{name}" for name in tried]
    assert all(f"{name}: ImportError: no mujoco.{name}" in str(error.value) for name in tried)


class TakesAMode:
    metadata: ClassVar = {"render_modes": ["human", "rgb_array"]}

    def __init__(self, size=1, render_mode=None): ...


class TakesAnything(TakesAMode):
    def __init__(self, size=1, **kwargs): ...


class TakesNoMode(TakesAMode):
    def __init__(self, size=1, *more): ...


class Writes(TakesAMode):
    metadata: ClassVar = {"render_modes": ["ansi"]}


class SaysNothing(TakesAMode):
    metadata: ClassVar = {}


@pytest.mark.parametrize(
    ("creator", "kwargs", "asked"),
    [
        (TakesAMode, {"size": 2}, True),
        (TakesAnything, {}, True),
        (TakesNoMode, {}, False),
        (TakesAMode, {"render_mode": "human"}, False),
        (TakesAMode, {"render_mode": None}, False),
        (Writes, {}, False),
        (SaysNothing, {}, False),
    ],
)
def test_pictures_are_asked_of_those_who_draw_and_take_a_mode(creator, kwargs, asked):
    assert picture_kwargs(creator, kwargs) == ({"render_mode": "rgb_array"} if asked else {})


def test_fit_frame_pads_and_keeps_what_fits():
    frame = np.full((40, 40, 3), 200, dtype=np.uint8)
    assert fit_frame(frame, 40, 40) is frame
    fitted = fit_frame(frame, width=80, height=40)
    assert fitted.shape == (40, 80, 3)
    assert (fitted[:, :20] == 0).all()
    assert (fitted[:, 21:59] == 200).all()


def test_rendering_available_draws_here():
    if reason := rendering_available():
        assert "apt install" in reason
        pytest.skip(reason)
