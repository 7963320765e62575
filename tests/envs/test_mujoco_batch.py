"""The batch simulator against ``mj_step`` on a small model with contacts, an equality constraint and two cameras."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from oracles import through_file

from lit_metarl.envs.base import EnvError
from lit_metarl.envs.mujoco_batch import BatchSimulation, settable_model_fields

XML = """
<mujoco>
  <option timestep="0.005" integrator="{integrator}"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="track" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/>
    <geom type="plane" size="3 3 0.1" rgba="0.2 0.8 0.2 1"/>
    <body name="ball" pos="0 0 0.3">
      <freejoint/>
      <geom size="0.1" mass="1" rgba="1 0 0 1"/>
    </body>
    <body name="arm" pos="0.3 0 0.4">
      <joint name="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="0.5"/>
    </body>
  </worldbody>
  {equality}
  <actuator><motor joint="hinge" gear="2" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def make_model(integrator="Euler", equality=""):
    return mujoco.MjModel.from_xml_string(XML.format(integrator=integrator, equality=equality))


def start(model, num_sims):
    """Random ``qpos [E, nq]`` and ``qvel [E, nv]`` near the model's."""
    rng = np.random.default_rng(0)
    return model.qpos0 + rng.uniform(-0.05, 0.05, (num_sims, model.nq)), rng.standard_normal((num_sims, model.nv))


@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
@pytest.mark.parametrize("equality", ["", '<equality><connect body1="ball" body2="arm" anchor="0 0 0.1"/></equality>'])
def test_equals_mj_step_with_contact_forces(integrator, equality):
    model, num_sims = make_model(integrator, equality), 3
    sim = BatchSimulation(model, num_sims, threads=2, contact_forces=True)
    xpos = sim.field("xpos")
    qpos, qvel = start(model, num_sims)
    sim.reset(qpos, qvel)
    datas = [mujoco.MjData(model) for _ in range(num_sims)]
    for data, q, v in zip(datas, qpos, qvel, strict=True):
        data.qpos[:], data.qvel[:] = q, v
        mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(xpos, [d.xpos for d in datas])
    rng, largest = np.random.default_rng(1), 0.0
    for _ in range(100):
        ctrl = rng.uniform(-1, 1, (num_sims, 1))
        sim.field("ctrl")[:] = ctrl
        sim.step(4)
        for data, u in zip(datas, ctrl, strict=True):
            data.ctrl[:] = u
            mujoco.mj_step(model, data, nstep=4)
            mujoco.mj_rnePostConstraint(model, data)
        np.testing.assert_array_equal(sim.motion, [np.concatenate([d.qpos, d.qvel]) for d in datas])
        np.testing.assert_array_equal(xpos, [d.xpos for d in datas])
        np.testing.assert_array_equal(sim.contact_forces, [d.cfrc_ext for d in datas])
        largest = max(largest, np.abs(sim.contact_forces).max())
    assert largest > 1.0  # the ball has touched the floor


@pytest.mark.parametrize("contact_forces", [False, True])
def test_state_round_trip_continues_bit_identically(contact_forces):
    model = make_model("RK4")
    sim, other = (BatchSimulation(model, 3, contact_forces=contact_forces) for _ in range(2))
    for each, scale in ((sim, 1.0), (other, 0.5)):
        qpos, qvel = start(model, 3)
        each.reset(qpos, scale * qvel)
        each.field("ctrl")[:] = 0.7 * scale
        for _ in range(20):
            each.step(3)
    other.load_state(through_file(sim.state()))
    for _ in range(30):
        sim.step(3)
        other.step(3)
        np.testing.assert_array_equal(sim.state(), other.state())
    # Negative control: position and velocity alone do not continue identically, warm starts belong to the state.
    bare = BatchSimulation(model, 3)
    bare.reset(sim.field("qpos").copy(), sim.field("qvel").copy())
    bare.field("ctrl")[:] = sim.field("ctrl")
    bare._batch.bind("qacc_warmstart")[:] = 0.0
    for _ in range(30):
        sim.step(3)
        bare.step(3)
    assert (sim.motion != bare.motion).any()


def test_state_is_a_copy():
    model = make_model()
    sim = BatchSimulation(model, 2)
    sim.reset(*start(model, 2))
    state = sim.state()
    kept = state.clone()
    sim.step(5)
    assert torch.equal(state, kept)
    assert not torch.equal(sim.state(), kept)


def test_reset_of_some_simulations():
    model = make_model()
    sim, twin = (BatchSimulation(model, 3, contact_forces=True) for _ in range(2))
    qpos, qvel = start(model, 3)
    for each in (sim, twin):
        each.reset(qpos, qvel)
        each.field("ctrl")[:] = 0.5
        for _ in range(40):
            each.step(5)
    assert np.abs(sim.contact_forces[1]).max() > 0
    sim.reset(qpos[1:2], qvel[1:2], np.array([1]))
    assert not sim.contact_forces[1].any()
    np.testing.assert_array_equal(sim.field("ctrl")[:, 0], [0.5, 0.0, 0.5])
    np.testing.assert_array_equal(sim.motion[1], np.concatenate([qpos[1], qvel[1]]))
    sim.step(5)
    twin.step(5)
    np.testing.assert_array_equal(sim.state()[[0, 2]], twin.state()[[0, 2]])
    np.testing.assert_array_equal(sim.contact_forces[[0, 2]], twin.contact_forces[[0, 2]])


def test_model_fields_of_some_simulations():
    model = make_model()
    sim = BatchSimulation(model, 3)
    assert sim.model_field("body_mass").shape == (model.nbody,)
    heavy = model.body_mass * np.array([1.0, 1.0, 3.0])
    sim.set_model_fields({"body_mass": heavy[None]}, np.array([1]))
    sim.set_model_fields({"opt.gravity": np.array([[0.0, 0.0, -9.81], [0.0, 0.0, -9.81], [0.0, 0.0, -3.7]])})
    assert sim.model_field("opt.gravity").shape == (3, 3)
    np.testing.assert_array_equal(sim.model_field("body_mass")[0], model.body_mass)
    qpos, qvel = (np.repeat(row[:1], 3, axis=0) for row in start(model, 3))
    sim.reset(qpos, qvel)
    references = [make_model() for _ in range(3)]
    references[1].body_mass[:] = heavy
    references[2].opt.gravity[2] = -3.7
    for reference in references:
        data = mujoco.MjData(reference)
        mujoco.mj_setConst(reference, data)
    datas = [mujoco.MjData(reference) for reference in references]
    sim.field("ctrl")[:] = 0.5
    for data in datas:
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[0], qvel[0], 0.5
        mujoco.mj_forward(data.model, data)
    for _ in range(50):
        sim.step(1)
        for data in datas:
            mujoco.mj_step(data.model, data)
    np.testing.assert_allclose(sim.field("qpos"), [d.qpos for d in datas], rtol=0, atol=1e-12)
    assert np.abs(np.diff(sim.field("qpos"), axis=0)).max(axis=1).min() > 1e-3


def test_settable_fields():
    names = settable_model_fields(make_model())
    assert {"body_mass", "geom_friction", "dof_damping", "actuator_gear", "opt.gravity"} <= set(names)
    assert not {"opt.timestep", "body_parentid", "body_subtreemass", "dof_M0", "geom_type"} & set(names)


@pytest.mark.parametrize("name", ["body_parentid", "qpos", "mass"])
def test_unknown_model_field(name):
    with pytest.raises(EnvError, match=f"'{name}'"):
        BatchSimulation(make_model(), 2).set_model_fields({name: np.zeros((2, 3))})


def test_unknown_field():
    with pytest.raises(EnvError, match="'position'"):
        BatchSimulation(make_model(), 2).field("position")


def test_diverged_simulations_are_named_until_their_reset():
    model = make_model()
    sim = BatchSimulation(model, 4)
    qpos, qvel = start(model, 4)
    sim.reset(qpos, qvel)
    sim.step(1)
    assert sim.diverged().size == 0
    sim.field("qvel")[2, 0] = 1e12
    sim.step(1)
    assert np.isfinite(sim.motion).all()  # MuJoCo has reset it
    assert sim.diverged().tolist() == [2]
    sim.motion[0, 0] = np.inf
    assert sim.diverged().tolist() == [0, 2]
    sim.reset(qpos[[0, 2]], qvel[[0, 2]], np.array([0, 2]))
    assert sim.diverged().size == 0


@pytest.mark.parametrize(("asked", "num_sims", "threads"), [(8, 2, 2), (1, 5, 1), (2, 5, 2)])
def test_threads(asked, num_sims, threads):
    assert BatchSimulation(make_model(), num_sims, asked).threads == threads
    assert 1 <= BatchSimulation(make_model(), num_sims).threads <= num_sims


@pytest.mark.parametrize(("variable", "most"), [("1", 1), ("1000", 1000), ("2,1", 1000), ("0", 1000), (None, 1000)])
def test_threads_that_nobody_asked_for_are_no_more_than_those_of_others(variable, most, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(3), raising=False)
    assert BatchSimulation(make_model(), 5).threads == min(3, most)
    assert BatchSimulation(make_model(), 5, 2).threads == 2


@pytest.mark.parametrize(("num_sims", "threads"), [(0, 1), (2, -1)])
def test_bad_sizes(num_sims, threads):
    with pytest.raises(ValueError, match="positive"):
        BatchSimulation(make_model(), num_sims, threads)


def test_render():
    model = make_model()
    sim = BatchSimulation(model, 2)
    qpos, qvel = start(model, 2)
    qpos[1, 0] += 0.5
    sim.reset(qpos, qvel)
    before = sim.state()
    try:
        pictures = [sim.render(i, 80, 60) for i in (0, 1)]
    except EnvError as error:
        pytest.skip(str(error))
    red = [(p[..., 0] > 100) & (p[..., 1] < 60) for p in pictures]
    assert pictures[0].shape == (60, 80, 3)
    assert pictures[0].dtype == np.uint8
    assert red[0].sum() > 4
    # The ball of simulation 1 is further to the right.
    assert np.argwhere(red[1])[:, 1].mean() > np.argwhere(red[0])[:, 1].mean() + 2
    large = sim.render(0, 800, 700)  # beyond the model's own frame buffer
    assert large.shape == (700, 800, 3)
    floor = large[650:, 700:].reshape(-1, 3).mean(axis=0)
    assert floor[1] > 2 * floor[0]
    assert floor[1] > 30
    assert torch.equal(sim.state(), before)
    sim.close()
    sim.close()
    for index in (2, -1):
        with pytest.raises(EnvError, match=f"no environment {index} to render, only 0 to 1"):
            sim.render(index, 80, 60)


@pytest.mark.parametrize("backend", ["glfw", "off"])
def test_render_without_gl_names_the_remedy(monkeypatch, backend):
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    model = make_model()
    sim = BatchSimulation(model, 1)
    with pytest.raises(EnvError, match="MUJOCO_GL=egl"):
        sim.render(0, 80, 60)
