"""Simulators behind one protocol, :class:`~lit_metarl.envs.base.BatchedEnv`."""
