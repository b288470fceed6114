"""Attacks: plain functions, one module per chapter. Most take (model, x, y) and return changed inputs."""

from modelsec.attacks.gradient import fgsm, pgd
from modelsec.attacks.poisoning import badnets

__all__ = ["badnets", "fgsm", "pgd"]
