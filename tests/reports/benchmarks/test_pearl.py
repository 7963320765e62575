"""The benchmark of PEARL: the plain implementation computes the same update; never how fast anything is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lit_metarl.config import load_config
from lit_metarl.reports.benchmarks.pearl import (
    HYPER,
    PARTS,
    PLAIN,
    RELEASED,
    SIZES,
    TWO_CRITICS,
    Size,
    minibatch_of,
    module_of,
)
from lit_metarl.reports.benchmarks.plain_pearl import PlainPEARL, plain_mlp
from lit_metarl.reports.command import main

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = Size([6, 7], [5], [6], [5, 9], 1, 3, 8, 4)


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
def test_the_plain_implementation_computes_the_same_updates() -> None:
    module, batch = module_of(TINY, RELEASED), minibatch_of(TINY)
    plain = PlainPEARL(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for one in (module, plain):
        torch.manual_seed(1)
        for _ in range(3):
            one.update(batch)
    state = module.state_dict()
    networks = {"encoder": plain.encoder, "actor": plain.actor}
    networks |= {f"critic {e}": critic for e, critic in enumerate(plain.critics)}
    networks |= {"value 0": plain.value, "target_value 0": plain.target}
    for name, network in networks.items():
        key, _, member = name.partition(" ")
        own, initial = (plain_mlp(x, key, int(member) if member else None) for x in (state, before))
        for after, other, start in zip(own.parameters(), network.parameters(), initial.parameters(), strict=True):
            torch.testing.assert_close(other.detach(), after.detach(), atol=1e-9, rtol=1e-7)
            assert not torch.equal(after, start)


@pytest.mark.parametrize(("name", "experiment"), [("published", "pearl"), ("small", "hyper_pearl")])
def test_sizes_are_those_of_the_configs(name: str, experiment: str) -> None:
    size, found = SIZES[name], load_config(CONFIGS / "experiment" / f"half_cheetah_velocity_{experiment}.yaml")
    data = found["data"]["init_args"]
    assert (size.tasks, size.batch, size.context) == tuple(
        data[key] for key in ("meta_batch", "batch_size", "context_size")
    )
    small = "_small" if name == "small" else ""
    mlp = load_config(CONFIGS / "algorithm" / f"pearl{small}.yaml")["model"]["init_args"]
    hyper = load_config(CONFIGS / "algorithm" / f"hyper_pearl{small}.yaml")["model"]["init_args"]
    for network in ("actor", "critic"):
        assert mlp[network]["init_args"]["hidden"] == size.hidden
    assert mlp["encoder"]["init_args"]["hidden"] == size.encoder
    settings = hyper["actor"]["init_args"]
    assert [settings[key] for key in ("hidden", "widths", "blocks")] == [size.dynamic, size.widths, size.blocks]


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pearl.json"
    words = ["--sizes", "small", "--rounds", "2", "--repeats", "1", "--environments", "2", "--horizon", "3"]
    assert main(["benchmark", "pearl", *words, "--threads", "1", "--json", str(file)]) == 0
    output, found = capsys.readouterr().out, json.loads(file.read_text())
    times = found["sizes"]["small"]
    assert list(times["updates"]) == [PLAIN, RELEASED, TWO_CRITICS, HYPER]
    assert all(len(seconds) == 2 for seconds in times["updates"].values())
    assert times["parts"].keys() == PARTS.keys()
    assert min(times["parts"].values()) > 0.0
    assert {number: len(speeds) for number, speeds in found["collection"].items()} == {"1": 2, "2": 2}
    assert all(f"\n{name}" in output for name in (*times["updates"], *PARTS))
