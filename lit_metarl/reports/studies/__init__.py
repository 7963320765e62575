"""Measurements of the methods themselves."""
