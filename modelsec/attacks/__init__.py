"""Attacks: plain functions, one module per chapter. Most take (model, x, y) and return changed inputs."""

from modelsec.attacks.adaptive import bpda, eot
from modelsec.attacks.apgd import apgd, apgd_targeted
from modelsec.attacks.auto import autoattack
from modelsec.attacks.black_box import square
from modelsec.attacks.gradient import bim, fgsm, mi_fgsm, pgd
from modelsec.attacks.minimum_norm import carlini_wagner, deepfool, fmn
from modelsec.attacks.poisoning import badnets

__all__ = [
    "apgd",
    "apgd_targeted",
    "autoattack",
    "badnets",
    "bim",
    "bpda",
    "carlini_wagner",
    "deepfool",
    "eot",
    "fgsm",
    "fmn",
    "mi_fgsm",
    "pgd",
    "square",
]
