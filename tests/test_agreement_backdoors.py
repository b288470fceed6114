"""Neural Cleanse beside another library's: from equal masks, equal alarms.

ART's own search for masks needs TensorFlow. Its rule for outliers doesn't, and it is the rule that raises the alarm.
"""

from typing import Any

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record

from modelsec.attacks.poisoning import Trigger
from modelsec.repair.neural_cleanse import Scan

pytestmark = pytest.mark.peers


def test_the_alarms_are_those_of_art() -> None:
    from art.estimators.poison_mitigation.neural_cleanse.neural_cleanse import NeuralCleanseMixin

    class Peer(NeuralCleanseMixin):
        """ART's rule, on masks that are handed in."""

        def __init__(self, masks: list[Any]) -> None:
            self.masks = masks

        @property
        def nb_classes(self) -> int:
            return len(self.masks)

        def generate_backdoor(self, x_val: Any, y_val: Any, y_target: Any) -> tuple[Any, Any]:
            mask = self.masks[int(np.argmax(y_target))]
            return mask, np.zeros_like(mask)

    generator = torch.Generator().manual_seed(0)
    alarms = 0
    for trial in range(300):
        classes = 5 + trial % 9
        faint = torch.rand(classes, 1, 1, 1, generator=generator) ** (1 + trial % 3)
        masks = faint * torch.rand(classes, 1, 9, 9, generator=generator)
        scan = Scan(tuple(Trigger(mask, mask) for mask in masks), torch.ones(classes))
        theirs = Peer([mask.numpy() for mask in masks]).outlier_detection(np.empty(0), np.empty(0))
        assert sorted(scan.flagged) == [label for label, _, _ in theirs]
        alarms += len(scan.flagged)
    assert alarms > 20
    record(
        "backdoors",
        [
            Agreement(
                "adversarial-robustness-toolbox",
                "neural_cleanse",
                "",
                "classes that are flagged, from equal masks",
                300,
                "the same in each of 300 scans",
            )
        ],
    )
