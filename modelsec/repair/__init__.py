"""Repair: what mends a model that attacks have broken, and what only seems to."""

__all__: list[str] = []
