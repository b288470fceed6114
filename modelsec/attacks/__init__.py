"""Attacks: plain functions, one module per chapter. Most take (model, x, y) and return changed inputs."""

from modelsec.attacks.gradient import bim, fgsm, mi_fgsm, pgd
from modelsec.attacks.poisoning import badnets

__all__ = ["badnets", "bim", "fgsm", "mi_fgsm", "pgd"]
