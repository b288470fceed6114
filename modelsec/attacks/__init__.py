"""Attacks: plain functions from (model, x, y) to perturbed inputs, one module per chapter."""

from modelsec.attacks.gradient import fgsm, pgd

__all__ = ["fgsm", "pgd"]
