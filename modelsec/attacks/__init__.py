"""Attacks: plain functions, one module per chapter. Most take (model, x, y) and return changed inputs."""

from modelsec.attacks.adaptive import bpda, eot
from modelsec.attacks.apgd import apgd, apgd_targeted
from modelsec.attacks.auto import autoattack
from modelsec.attacks.black_box import square
from modelsec.attacks.clean_label import clean_label, gradient_matching
from modelsec.attacks.estimated_gradient import nes, spsa
from modelsec.attacks.extraction import extract, extract_linear, fidelity
from modelsec.attacks.gradient import bim, fgsm, mi_fgsm, pgd
from modelsec.attacks.gradient_inversion import (
    gradient_labels,
    invert_features,
    invert_gradient,
    layer_inputs,
    step_gradient,
)
from modelsec.attacks.hopskipjump import hopskipjump
from modelsec.attacks.inversion import PcaPrior, invert, pca_prior
from modelsec.attacks.leak import Leak
from modelsec.attacks.membership import Shadows, by_loss, lira, shadow_attack, shadows, trials
from modelsec.attacks.minimum_norm import carlini_wagner, deepfool, fmn
from modelsec.attacks.physical import Placement, Places, apply_patch, patch, universal
from modelsec.attacks.poisoning import badnets, flip
from modelsec.attacks.queries import BudgetSpent, Queries, labels_only, scores_only
from modelsec.attacks.spatial import spatial
from modelsec.attacks.tabular import Move, Rules, cheapest
from modelsec.attacks.transfer import ensemble, transfer
from modelsec.attacks.triggers import blended, wanet, warp

__all__ = [
    "BudgetSpent",
    "Leak",
    "Move",
    "PcaPrior",
    "Placement",
    "Places",
    "Queries",
    "Rules",
    "Shadows",
    "apgd",
    "apgd_targeted",
    "apply_patch",
    "autoattack",
    "badnets",
    "bim",
    "blended",
    "bpda",
    "by_loss",
    "carlini_wagner",
    "cheapest",
    "clean_label",
    "deepfool",
    "ensemble",
    "eot",
    "extract",
    "extract_linear",
    "fgsm",
    "fidelity",
    "flip",
    "fmn",
    "gradient_labels",
    "gradient_matching",
    "hopskipjump",
    "invert",
    "invert_features",
    "invert_gradient",
    "labels_only",
    "layer_inputs",
    "lira",
    "mi_fgsm",
    "nes",
    "patch",
    "pca_prior",
    "pgd",
    "scores_only",
    "shadow_attack",
    "shadows",
    "spatial",
    "spsa",
    "square",
    "step_gradient",
    "transfer",
    "trials",
    "universal",
    "wanet",
    "warp",
]
