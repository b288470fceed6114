"""Repair: what mends a model that attacks have broken, and what only seems to."""

from modelsec.repair.adversarial_training import mart, pgd_training, trades
from modelsec.repair.detection import evade, feature_squeezing, stands
from modelsec.repair.fast_training import fast, free
from modelsec.repair.purification import (
    adapted,
    bit_depth,
    distilled,
    jpeg,
    k_winners,
    median,
    noise,
    random_resize,
    thermometer,
)
from modelsec.repair.schedules import BestEpoch, decay, ramp

__all__ = [
    "BestEpoch",
    "adapted",
    "bit_depth",
    "decay",
    "distilled",
    "evade",
    "fast",
    "feature_squeezing",
    "free",
    "jpeg",
    "k_winners",
    "mart",
    "median",
    "noise",
    "pgd_training",
    "ramp",
    "random_resize",
    "stands",
    "thermometer",
    "trades",
]
