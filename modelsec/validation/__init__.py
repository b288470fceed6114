"""Validation: does a model recognise what it should, how sure may we be, and may it be released?

One module a question. Scores of shift grow as an input looks stranger, for every one of them.
"""

from modelsec.training import features
from modelsec.validation.calibration import (
    Reliability,
    Tempered,
    ece,
    ece_if_calibrated,
    fit_temperature,
    reliability,
)
from modelsec.validation.corruption_report import CorruptionReport, corruption_report
from modelsec.validation.corruptions import KINDS, Corruption, corrupt, corruption_table
from modelsec.validation.gate import DEFAULT, Outcome, Requirement, Verdict, release_gate
from modelsec.validation.integrity import (
    PickleReport,
    file_sha256,
    load_weights,
    scan_pickle,
    verify_file,
)
from modelsec.validation.metrics import (
    CrossValidation,
    class_report,
    confusion,
    cross_validate,
    logits,
)
from modelsec.validation.referral import Referring, RiskCoverage, risk_coverage
from modelsec.validation.shift import (
    Detection,
    Mahalanobis,
    auroc,
    detect,
    energy,
    msp,
    threshold,
)
from modelsec.validation.slices import Slice, find_slices, shape_measures

__all__ = [
    "DEFAULT",
    "KINDS",
    "Corruption",
    "CorruptionReport",
    "CrossValidation",
    "Detection",
    "Mahalanobis",
    "Outcome",
    "PickleReport",
    "Referring",
    "Reliability",
    "Requirement",
    "RiskCoverage",
    "Slice",
    "Tempered",
    "Verdict",
    "auroc",
    "class_report",
    "confusion",
    "corrupt",
    "corruption_report",
    "corruption_table",
    "cross_validate",
    "detect",
    "ece",
    "ece_if_calibrated",
    "energy",
    "features",
    "file_sha256",
    "find_slices",
    "fit_temperature",
    "load_weights",
    "logits",
    "msp",
    "release_gate",
    "reliability",
    "risk_coverage",
    "scan_pickle",
    "shape_measures",
    "threshold",
    "verify_file",
]
