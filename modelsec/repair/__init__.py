"""Repair: what mends a model that attacks have broken, and what only seems to."""

from modelsec.repair.adversarial_training import mart, pgd_training, trades
from modelsec.repair.bounds import (
    certified,
    certified_radius,
    crown,
    ibp,
    margin_bounds,
)
from modelsec.repair.detection import evade, feature_squeezing, stands
from modelsec.repair.distillation import distilled
from modelsec.repair.exact import Exact, exact_margins
from modelsec.repair.fast_training import fast, free
from modelsec.repair.interval_training import ibp_training
from modelsec.repair.layers import Bounds
from modelsec.repair.purification import (
    adapted,
    bit_depth,
    jpeg,
    median,
    noise,
    random_resize,
    thermometer,
)
from modelsec.repair.schedules import BestEpoch, decay, ramp
from modelsec.repair.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothed,
    noise_training,
    probability_bound,
    smooth,
)

__all__ = [
    "ABSTAIN",
    "BestEpoch",
    "Bounds",
    "Certificate",
    "Exact",
    "Smoothed",
    "adapted",
    "bit_depth",
    "certified",
    "certified_radius",
    "crown",
    "decay",
    "distilled",
    "evade",
    "exact_margins",
    "fast",
    "feature_squeezing",
    "free",
    "ibp",
    "ibp_training",
    "jpeg",
    "margin_bounds",
    "mart",
    "median",
    "noise",
    "noise_training",
    "pgd_training",
    "probability_bound",
    "ramp",
    "random_resize",
    "smooth",
    "stands",
    "thermometer",
    "trades",
]
