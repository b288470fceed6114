"""Cleaning: find wrong labels, odd or doubled samples, and planted ones before training."""

from modelsec.cleaning.entropy import flag_low_entropy, strip
from modelsec.cleaning.poison import (
    Clusters,
    activation_clustering,
    flag_clusters,
    flag_top,
    last_features,
    reclassify,
    spectral_signatures,
    whiten,
)

__all__ = [
    "Clusters",
    "activation_clustering",
    "flag_clusters",
    "flag_low_entropy",
    "flag_top",
    "last_features",
    "reclassify",
    "spectral_signatures",
    "strip",
    "whiten",
]
