"""Repair: what mends a model that attacks have broken, and what only seems to."""

from modelsec.repair.adversarial_training import mart, pgd_training, trades
from modelsec.repair.backdoors import fine_prune, fine_tune, nad
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
from modelsec.repair.neural_cleanse import Scan, neural_cleanse, unlearn
from modelsec.repair.neuron_pruning import anp
from modelsec.repair.private import Budget, most_found, noise_for, private_fit, spent
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
from modelsec.repair.unlearning import Sharded, ascend, fit_head, newton_forget

__all__ = [
    "ABSTAIN",
    "BestEpoch",
    "Bounds",
    "Budget",
    "Certificate",
    "Exact",
    "Scan",
    "Sharded",
    "Smoothed",
    "adapted",
    "anp",
    "ascend",
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
    "fine_prune",
    "fine_tune",
    "fit_head",
    "free",
    "ibp",
    "ibp_training",
    "jpeg",
    "margin_bounds",
    "mart",
    "median",
    "most_found",
    "nad",
    "neural_cleanse",
    "newton_forget",
    "noise",
    "noise_for",
    "noise_training",
    "pgd_training",
    "private_fit",
    "probability_bound",
    "ramp",
    "random_resize",
    "smooth",
    "spent",
    "stands",
    "thermometer",
    "trades",
    "unlearn",
]
