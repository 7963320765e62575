"""The comparison on sampled trajectories: what is drawn, its pattern, its tables and its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from report_cases import cells
from torch.testing import assert_close

from lit_metarl.envs.tabular import random_mdp
from lit_metarl.reports.command import main, parse
from lit_metarl.reports.section import markers
from lit_metarl.reports.studies.tabular import ESTIMATES, Setting, accuracies_of_mdp, simulate, target_logits

TINY = ["study", "tabular", "--mdps", "2", "--states", "3", "--actions", "2", "--horizon", "4"]
TINY += ["--epsilons", "0", "0.5", "--trajectories", "20", "--sizes", "5", "20"]
SETTING = Setting(states=4, actions=3, horizon=6, gamma=0.8, concentration=0.1, seed=0)


def test_trajectories_are_those_of_the_mdp():
    mdp = random_mdp(4, 3, 0, concentration=0.1)
    data = simulate(mdp, 3000, 5, 0.8, np.random.default_rng(0))
    np.testing.assert_array_equal(data.reward, mdp.reward[data.state[:, :-1], data.action])
    pairs = data.state[:, :-1] * 3 + data.action
    for pair in torch.unique(pairs).tolist():
        after = data.state[:, 1:][pairs == pair]
        share = np.bincount(after, minlength=4) / len(after)
        np.testing.assert_allclose(share, mdp.transition[pair // 3, pair % 3], atol=4 * 0.5 / np.sqrt(len(after)))
    np.testing.assert_allclose(np.bincount(data.action.flatten()) / 15_000, 1 / 3, atol=0.02)


def test_target_is_between_uniform_and_deterministic():
    policy = torch.softmax(target_logits(0.4, torch.eye(4)[[2, 0]].double()), -1)
    assert_close(policy, torch.tensor([[0.15, 0.15, 0.55, 0.15], [0.55, 0.15, 0.15, 0.15]]).double())


def test_accuracies_have_the_known_pattern():
    points = [(0.0, 500), (0.6, 20), (0.6, 500)]
    runs = [accuracies_of_mdp(SETTING, index, points) for index in range(4)]
    mean = {point: dict(zip(ESTIMATES, np.mean([run[point] for run in runs], axis=0), strict=True)) for point in points}
    on, off = mean[0.0, 500], mean[0.6, 500]
    np.testing.assert_allclose(on["TayPO-2"], on["DR"], atol=1e-9)
    np.testing.assert_allclose(on["truncated DR"], on["DR"], atol=1e-9)
    assert on["TayPO-1"][0] == pytest.approx(on["DR"][0], abs=1e-9)
    assert on["TayPO-1"][1] < on["DR"][1] - 0.01
    assert min(on["DR"]) > 0.8
    assert off["TayPO-2"][1] > max(off[name][1] for name in ESTIMATES if name != "TayPO-2")
    assert off["TayPO-2"][1] > mean[0.6, 20]["TayPO-2"][1]
    again = accuracies_of_mdp(SETTING, 0, points[:1])
    assert not np.allclose(again[0.0, 500], accuracies_of_mdp(replace(SETTING, seed=1), 0, points[:1])[0.0, 500])


def test_one_set_of_trajectories_for_all_points():
    alone, together = (
        accuracies_of_mdp(SETTING, 2, points) for points in ([(0.3, 40)], [(0.1, 40), (0.3, 10), (0.3, 40)])
    )
    np.testing.assert_allclose(alone[0.3, 40], together[0.3, 40])


def test_tabular_command(capsys, tmp_path):
    begin, end = markers("tabular")
    file = tmp_path / "page.md"
    file.write_text(f"{begin}\n{end}\n")
    assert main([*TINY, "--write", str(file), "--figure", str(tmp_path / "figures")]) == 0
    output = capsys.readouterr()
    assert output.err.strip() == str(tmp_path / "figures" / "tabular.png")
    assert (tmp_path / "figures" / "tabular.png").stat().st_size > 10_000
    assert output.out in file.read_text()
    rows = [line for line in map(cells, output.out.splitlines()) if len(line) == 2 + len(ESTIMATES)]
    assert [row[:2] for row in rows if row[0][0].isdigit()] == [["0", "20"], ["0.5", "20"], ["0.5", "5"], ["0.5", "20"]]
    main([*TINY, "--figure", str(tmp_path)])
    assert capsys.readouterr().out == output.out


def test_figure_goes_to_mlruns(tmp_path):
    assert main([*TINY, "--mdps", "1"]) == 0
    assert (tmp_path / "mlruns" / "figures" / "tabular.png").exists()


def test_defaults_are_those_of_the_paper():
    _, args = parse(["study", "tabular"])
    assert (args.states, args.actions, args.horizon, args.gamma, args.trajectories) == (10, 5, 20, 0.8, 1000)
    assert (args.mdps, args.size_epsilon) == (10, 0.5)
