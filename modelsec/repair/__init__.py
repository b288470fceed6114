"""Repair: what mends a model that attacks have broken, and what only seems to."""

from modelsec.repair.adversarial_training import mart, pgd_training, trades
from modelsec.repair.fast_training import fast, free
from modelsec.repair.schedules import BestEpoch, decay, ramp

__all__ = ["BestEpoch", "decay", "fast", "free", "mart", "pgd_training", "ramp", "trades"]
