"""Sweeps: the runs that a recipe asks for, trained side by side, skipped when done and gone on with when stopped."""
