"""Random streams: distinct by use, and the global ones seeded whole."""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch

from lit_metarl.data.streams import Stream, derive_seed, seed_global


def test_every_use_of_every_process_of_every_run_has_its_own_seed() -> None:
    assert len(Stream) == len(Stream.__members__)  # no use is another's under a second name
    seeds = [derive_seed(*which) for which in itertools.product(range(4), range(4), Stream)]
    assert len(set(seeds)) == 4 * 4 * len(Stream)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)  # in both halves
    assert len({seed >> 32 for seed in seeds}) == len(seeds)


def test_all_global_streams_are_seeded() -> None:
    seed = 5 * 2**32 + 123456789  # NumPy's global stream takes 32 bits
    seed_global(seed)
    drawn = random.random(), np.random.random(), torch.rand(())  # noqa: NPY002
    assert drawn[0] == random.Random(seed).random()
    assert drawn[1] == np.random.RandomState(123456789).random()
    assert torch.equal(drawn[2], torch.rand((), generator=torch.Generator().manual_seed(seed)))
