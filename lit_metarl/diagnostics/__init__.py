"""Measurements of networks and of gradients: pure functions of tensors."""
