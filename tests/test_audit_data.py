"""The audit's section on data: planted faults are named, sound data are not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modelsec.audit.data import data as section
from modelsec.audit.parts import Subject
from modelsec.cleaning import flip_labels
from modelsec.data import Data, mnist


def sound(n: int = 60, classes: int = 3) -> Data:
    """Noisy pictures of as many bars as the class says, on 12x12 pixels."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n + 30) % classes
    x = 0.5 * torch.rand(n + 30, 1, 12, 12, generator=generator)
    for k in range(classes):
        x[y == k, :, :, 4 * k : 4 * k + 2] += 0.5
    names = tuple("abc"[:classes])
    return Data("bars", x[:n], y[:n], x[n:], y[n:], names, "drawn", "free")


def never(x: Tensor) -> Tensor:
    raise AssertionError("this section asks the model nothing")


def found(data: Data, n: int = 1000):
    return section(Subject(never, data, n=n))


def test_sound_data_are_sound() -> None:
    result = found(sound())
    assert result.verdict == "ok", result.summary
    assert result.measures["balance"] == 1
    assert {float(result.measures[k]) for k in ("out_of_range", "leaked_exact", "leaked_near")} == {
        0
    }
    assert float(result.measures["label_issues"]) <= 0.05
    assert result.summary.startswith("No copies across the split")
    assert result.table is not None
    assert len(result.table) == 5


def test_test_images_in_the_training_half_are_counted() -> None:
    data = sound()
    exact = replace(data, x_train=torch.cat([data.x_test[:4], data.x_train[4:]]))
    result = found(exact)
    assert result.verdict == "warning"
    assert result.measures["leaked_exact"].hits == result.measures["leaked_near"].hits == 4
    assert "4 test images have exact copies" in result.summary
    near = replace(data, x_train=torch.cat([0.8 * data.x_test[:4].roll(1, 3), data.x_train[4:]]))
    result = found(near)
    assert (result.measures["leaked_exact"].hits, result.measures["leaked_near"].hits) == (0, 4)
    assert result.verdict == "warning"


def test_a_test_image_with_two_copies_counts_once() -> None:
    data = sound()
    twice = data.x_test[:1].repeat(2, 1, 1, 1)
    result = found(replace(data, x_train=torch.cat([twice, data.x_train[2:]])))
    assert result.measures["leaked_exact"].hits == result.measures["leaked_near"].hits == 1


def test_only_the_test_images_that_are_audited_count() -> None:
    data = sound()
    leaky = replace(data, x_train=torch.cat([data.x_test[-4:], data.x_train[4:]]))
    assert found(leaky, n=20).measures["leaked_exact"].hits == 0
    assert found(leaky).measures["leaked_exact"].hits == 4


@pytest.mark.parametrize("half", ["y_train", "y_test"])
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_counted(half: str, label: int) -> None:
    data = sound()
    y = getattr(data, half).clone()
    y[:2] = label
    result = found(replace(data, **{half: y}))
    assert result.verdict == "warning"
    assert "2 labels name no class" in result.summary
    assert result.measures["out_of_range"].hits == 2


def test_a_rare_class_and_wrong_labels_are_named() -> None:
    data = sound()
    rare = data.y_train != 2
    rare[[2, 5, 8]] = True
    result = found(replace(data, x_train=data.x_train[rare], y_train=data.y_train[rare]))
    assert result.verdict == "warning"
    assert result.summary.startswith("The smallest class has 3 samples")
    assert "label_issues" not in result.measures  # too few to judge
    noisy = flip_labels(data.y_train, 0.3, classes=3, generator=torch.Generator().manual_seed(0))
    result = found(replace(data, y_train=noisy.labels))
    assert result.verdict == "warning"
    assert "of the training labels are in doubt" in result.summary


def test_without_a_training_half_it_is_skipped() -> None:
    data = sound()
    result = found(replace(data, x_train=data.x_train[:0], y_train=data.y_train[:0]))
    assert result.verdict == "skipped"
    assert result.summary == "There is no training half to look at."


def test_large_images_are_compared_small() -> None:
    data = sound()
    large = {
        k: getattr(data, k).repeat_interleave(8, 2).repeat_interleave(8, 3)
        for k in ("x_train", "x_test")
    }
    large["x_train"][0] = large["x_test"][0]
    result = found(replace(data, **large))
    assert result.measures["leaked_exact"].hits == 1
    assert result.measures["leaked_near"].hits == 1


def test_mnist_as_it_is_passes() -> None:
    digits = mnist()
    few = replace(digits, x_train=digits.x_train[:1000], y_train=digits.y_train[:1000])
    result = found(few, n=300)
    assert result.verdict in ("ok", "warning")
    assert result.measures["leaked_near"].hits == 0
    assert float(result.measures["label_issues"]) < 0.1
