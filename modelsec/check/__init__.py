"""Graders for the book's exercises, and its quizzes.

``check.fgsm(my_fgsm)`` runs a solution on inputs chosen to tell right from wrong and answers with
a sentence. Any correct solution passes, however it is written.
"""

from modelsec.check.adversarial_training import (
    best_epoch,
    collapse_alarm,
    fast_step,
    gradients_per_epoch,
    trades_loss,
)
from modelsec.check.augmentation import mixup_each, mixup_floor, shift_each, worst_of
from modelsec.check.backdoors import (
    anomaly_scores,
    attention_distance,
    chance_of_alarm,
    quiet_trigger,
    what_is_left,
)
from modelsec.check.background import keeps_to, smallest_eps, threat_card, violations
from modelsec.check.black_box import (
    accounts_needed,
    nes_gradient,
    queries_for_gradient,
    stateful_detector,
)
from modelsec.check.broken_defences import (
    break_sealed,
    joint_loss,
    lucky_stop,
    mean_gradient,
    quantiser,
    sealed,
)
from modelsec.check.certified import (
    crown_looser,
    interval_affine,
    radius_cap,
    vote_certificate,
)
from modelsec.check.cleaning import (
    fingerprint,
    leaked_similarity,
    precision_of_flags,
    quiet_flips,
)
from modelsec.check.cleaning_poison import planted_share, quiet_poison, spectral_score
from modelsec.check.clinic import (
    clinic_budget,
    clinic_l1_step,
    clinic_l2_step,
    clinic_labels,
    clinic_misses,
    clinic_modes,
    clinic_overshoot,
    clinic_worst_case,
)
from modelsec.check.driving import (
    chance_of_false_alarm,
    drives_needed,
    first_ring,
    push_wheel,
)
from modelsec.check.extraction import agreement_report, equations_needed, image_from_gradient
from modelsec.check.finance import cost_when_gamed, first_alarm, one_hot_swap, refuse_above
from modelsec.check.gradient import l1_fill, momentum, pgd, step_rule, steps_to_cross
from modelsec.check.grading import Feedback, grader, require
from modelsec.check.loss import cross_entropy, fgsm, risk_of_guessing, saturation, worst_case
from modelsec.check.medicine import (
    error_of_the_sure,
    lowest_score,
    record_seal,
    referral_threshold,
)
from modelsec.check.minimum_norm import accuracy_from_distances, border_distance, border_step
from modelsec.check.multiple_choice import quiz
from modelsec.check.outlook import (
    images_to_halve,
    pareto_front,
    power_law,
    training_operations,
)
from modelsec.check.physical import (
    expected_step,
    patch_at_any_angle,
    photographs_behind,
    stick_on,
)
from modelsec.check.poisoning import (
    baseline_success,
    faint_trigger,
    matching_loss,
    mended_poison,
)
from modelsec.check.privacy_attacks import (
    honest_shadows,
    members_found,
    named_rightly,
    offline_score,
)
from modelsec.check.privacy_repair import (
    epsilon_at_least,
    members_at_most,
    private_gradient,
    samples_again,
    sensitive_batch,
)
from modelsec.check.reliable_evaluation import (
    at_most_robust,
    break_masked,
    distrustful,
    two_faced,
)
from modelsec.check.tools import (
    any_library_bim,
    art_wrapping,
    eps_in_pixels,
    flatten_order,
    paired_p_value,
)
from modelsec.check.traffic import least_cost, pixels_across, sticker_step, whole_tracks
from modelsec.check.validation import (
    calibration_error,
    images_needed,
    missed_share,
    temperature,
    weak_slice,
)
from modelsec.check.validation_files import gate_rule, impulse_noise, pickle_globals

__all__ = [
    "Feedback",
    "accounts_needed",
    "accuracy_from_distances",
    "agreement_report",
    "anomaly_scores",
    "any_library_bim",
    "art_wrapping",
    "at_most_robust",
    "attention_distance",
    "baseline_success",
    "best_epoch",
    "border_distance",
    "border_step",
    "break_masked",
    "break_sealed",
    "calibration_error",
    "chance_of_alarm",
    "chance_of_false_alarm",
    "clinic_budget",
    "clinic_l1_step",
    "clinic_l2_step",
    "clinic_labels",
    "clinic_misses",
    "clinic_modes",
    "clinic_overshoot",
    "clinic_worst_case",
    "collapse_alarm",
    "cost_when_gamed",
    "cross_entropy",
    "crown_looser",
    "distrustful",
    "drives_needed",
    "eps_in_pixels",
    "epsilon_at_least",
    "equations_needed",
    "error_of_the_sure",
    "expected_step",
    "faint_trigger",
    "fast_step",
    "fgsm",
    "fingerprint",
    "first_alarm",
    "first_ring",
    "flatten_order",
    "gate_rule",
    "grader",
    "gradients_per_epoch",
    "honest_shadows",
    "image_from_gradient",
    "images_needed",
    "images_to_halve",
    "impulse_noise",
    "interval_affine",
    "joint_loss",
    "keeps_to",
    "l1_fill",
    "leaked_similarity",
    "least_cost",
    "lowest_score",
    "lucky_stop",
    "matching_loss",
    "mean_gradient",
    "members_at_most",
    "members_found",
    "mended_poison",
    "missed_share",
    "mixup_each",
    "mixup_floor",
    "momentum",
    "named_rightly",
    "nes_gradient",
    "offline_score",
    "one_hot_swap",
    "paired_p_value",
    "pareto_front",
    "patch_at_any_angle",
    "pgd",
    "photographs_behind",
    "pickle_globals",
    "pixels_across",
    "planted_share",
    "power_law",
    "precision_of_flags",
    "private_gradient",
    "push_wheel",
    "quantiser",
    "queries_for_gradient",
    "quiet_flips",
    "quiet_poison",
    "quiet_trigger",
    "quiz",
    "radius_cap",
    "record_seal",
    "referral_threshold",
    "refuse_above",
    "require",
    "risk_of_guessing",
    "samples_again",
    "saturation",
    "sealed",
    "sensitive_batch",
    "shift_each",
    "smallest_eps",
    "spectral_score",
    "stateful_detector",
    "step_rule",
    "steps_to_cross",
    "stick_on",
    "sticker_step",
    "temperature",
    "threat_card",
    "trades_loss",
    "training_operations",
    "two_faced",
    "violations",
    "vote_certificate",
    "weak_slice",
    "what_is_left",
    "whole_tracks",
    "worst_case",
    "worst_of",
]
