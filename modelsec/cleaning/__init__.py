"""Cleaning: find wrong labels, odd or doubled samples, and planted ones before training."""

from modelsec.cleaning.duplicates import Pairs, exact_duplicates, near_duplicates, sample_hash
from modelsec.cleaning.entropy import flag_low_entropy, strip
from modelsec.cleaning.labels import (
    Noisy,
    confident_joint,
    confident_thresholds,
    find_label_issues,
    flip_by_matrix,
    flip_labels,
    logistic,
    network,
    out_of_fold_probabilities,
    self_confidence,
)
from modelsec.cleaning.outliers import knn_distance, mahalanobis
from modelsec.cleaning.poison import (
    Clusters,
    activation_clustering,
    flag_clusters,
    flag_top,
    reclassify,
    spectral_signatures,
    whiten,
)
from modelsec.cleaning.provenance import (
    Changes,
    Manifest,
    manifest,
    read_manifest,
    verify,
    write_manifest,
)
from modelsec.training import features as last_features

__all__ = [
    "Changes",
    "Clusters",
    "Manifest",
    "Noisy",
    "Pairs",
    "activation_clustering",
    "confident_joint",
    "confident_thresholds",
    "exact_duplicates",
    "find_label_issues",
    "flag_clusters",
    "flag_low_entropy",
    "flag_top",
    "flip_by_matrix",
    "flip_labels",
    "knn_distance",
    "last_features",
    "logistic",
    "mahalanobis",
    "manifest",
    "near_duplicates",
    "network",
    "out_of_fold_probabilities",
    "read_manifest",
    "reclassify",
    "sample_hash",
    "self_confidence",
    "spectral_signatures",
    "strip",
    "verify",
    "whiten",
    "write_manifest",
]
