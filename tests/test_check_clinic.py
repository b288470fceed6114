"""Graders of the bug clinic: the faults of history are found, mended ones pass, half-mended ones are told why."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modelsec import attacks
from modelsec.attacks.norms import NORMS
from modelsec.check import clinic_faults as faults
from modelsec.losses import cross_entropy
from modelsec.training import inference


def column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def slope(model, x, y):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


# --- clinic_l2_step


def l2_by_norms(g, size):
    return size * NORMS["l2"].steepest(g)


def l2_guarded(g, size):
    length = g.flatten(1).norm(dim=1)
    return size * g / column(torch.where(length > 0, length, 1), g)


def l2_row_by_row(g, size):
    rows = [row / row.norm() if row.any() else row for row in g.double()]
    return size * torch.stack(rows).to(g)


def l2_whole_batch(g, size):
    return size * g / g.norm().clamp_min(1e-30)


def l2_unguarded(g, size):
    return size * g / column(g.flatten(1).norm(dim=1), g)


def l2_smaller_guard(g, size):
    return size * g / column(g.flatten(1).norm(dim=1) + 1e-12, g)


def l2_sign(g, size):
    step = g.sign() / math.sqrt(g[0].numel())
    return size * step


# --- clinic_l1_step


def l1_by_norms(g, size):
    return size * NORMS["l1"].steepest(g)


def l1_one_hot(g, size):
    flat = g.flatten(1)
    at = flat.abs().argmax(1)
    hot = F.one_hot(at, flat.shape[1]) * flat.sign()
    return size * hot.view_as(g)


def l1_row_by_row(g, size):
    step = torch.zeros_like(g).flatten(1)
    for i, row in enumerate(g.flatten(1)):
        j = int(row.abs().argmax())
        step[i, j] = size * row[j].sign()
    return step.view_as(g)


def l1_forgets_the_sign(g, size):
    flat = g.flatten(1)
    return size * F.one_hot(flat.abs().argmax(1), flat.shape[1]).view_as(g).to(g)


def l1_largest_not_steepest(g, size):
    flat = g.flatten(1)
    return size * F.one_hot(flat.argmax(1), flat.shape[1]).view_as(g).to(g)


# --- clinic_budget


def bim_loop(model, x, y, eps, step_size, steps):
    adv = x.clone()
    for _ in range(steps):
        adv = adv + step_size * slope(model, adv, y).sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return adv


def bim_min_max(model, x, y, eps, step_size, steps):
    low, high, adv = (x - eps).clamp_min(0), (x + eps).clamp_max(1), x
    for _ in range(steps):
        adv = torch.min(torch.max(adv + step_size * slope(model, adv, y).sign(), low), high)
    return adv


def bim_by_pgd(model, x, y, eps, step_size, steps):
    return attacks.pgd(
        model, x, y, eps=eps, step_size=step_size, steps=steps, random_start=False,
        early_stop=False, loss=cross_entropy,
    )  # fmt: skip


def bim_without_box(model, x, y, eps, step_size, steps):
    adv = x
    for _ in range(steps):
        adv = x + (adv + step_size * slope(model, adv, y).sign() - x).clamp(-eps, eps)
    return adv


def bim_one_step(model, x, y, eps, step_size, steps):
    return (x + min(eps, step_size) * slope(model, x, y).sign()).clamp(0, 1)


def bim_scaled_back(model, x, y, eps, step_size, steps):
    """Shrinks all pixels where one is too far: that is a projection in no norm."""
    adv = x
    for _ in range(steps):
        adv = (adv + step_size * slope(model, adv, y).sign()).clamp(0, 1)
    return x + (adv - x) * eps / max(eps, steps * step_size) / 2


# --- clinic_modes


def modes_by_inference(model, eps):
    def attack(x, y):
        with inference(model):
            return (x + eps * slope(model, x, y).sign()).clamp(0, 1)

    return attack


def modes_noted_one_by_one(model, eps):
    def attack(x, y):
        modes = {part: part.training for part in model.modules()}
        model.eval()
        try:
            return (x + eps * slope(model, x, y).sign()).clamp(0, 1)
        finally:
            for part, mode in modes.items():
                part.training = mode

    return attack


def modes_by_package(model, eps):
    return lambda x, y: attacks.fgsm(model, x, y, eps=eps, loss=cross_entropy)


def modes_outermost(model, eps):
    def attack(x, y):
        was = model.training
        model.eval()
        adv = (x + eps * slope(model, x, y).sign()).clamp(0, 1)
        model.train(was)
        return adv

    return attack


def modes_not_after_an_error(model, eps):
    def attack(x, y):
        modes = [(part, part.training) for part in model.modules()]
        model.eval()
        adv = (x + eps * slope(model, x, y).sign()).clamp(0, 1)
        for part, mode in modes:
            part.training = mode
        return adv

    return attack


def modes_left_alone(model, eps):
    return lambda x, y: (x + eps * slope(model, x, y).sign()).clamp(0, 1)


# --- clinic_labels


def labels_used(model, x, y, eps):
    return (x + eps * slope(model, x, y).sign()).clamp(0, 1)


def labels_one_hot(model, x, y, eps):
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    loss = -(F.one_hot(y, logits.shape[1]) * logits.log_softmax(1)).sum()
    return (x + eps * torch.autograd.grad(loss, leaf)[0].sign()).clamp(0, 1)


def labels_by_package(model, x, y, eps):
    return attacks.fgsm(model, x, y, eps=eps)


def predictions_used(model, x, y, eps):
    return attacks.fgsm(model, x, model(x).argmax(1), eps=eps)


def labels_downhill(model, x, y, eps):
    return (x - eps * slope(model, x, y).sign()).clamp(0, 1)


# --- clinic_overshoot


def margin_step(model, point, y):
    leaf = point.clone().requires_grad_()
    logits = model(leaf)
    lead = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
    (g,) = torch.autograd.grad(lead.sum(), leaf)
    return -lead.detach() * g / g.square().sum(1, keepdim=True)


def deepfool_copied(model, x, y, steps, overshoot):
    point = x.clone()
    for _ in range(steps):
        point += margin_step(model, point, y)
    return x + (1 + overshoot) * (point - x)


def deepfool_not_in_place(model, x, y, steps, overshoot):
    point = x
    for _ in range(steps):
        point = point + margin_step(model, point, y)
    return x + (1 + overshoot) * (point - x)


def deepfool_total(model, x, y, steps, overshoot):
    total = torch.zeros_like(x)
    for _ in range(steps):
        total = total + margin_step(model, x + total, y)
    return x + (1 + overshoot) * total


def deepfool_every_step(model, x, y, steps, overshoot):
    """Overshoots in each step, but measures the next one from there: it ends at any distance."""
    point = x
    for _ in range(steps):
        point = point + (1 + overshoot) * margin_step(model, point, y)
    return point


def deepfool_constant(model, x, y, steps, overshoot):
    return x + 1.02 * (deepfool_copied(model, x, y, steps, 0.0) - x)


def deepfool_in_place(model, x, y, steps, overshoot):
    point = x
    for _ in range(steps):
        point += margin_step(model, point, y)
    return point


# --- clinic_misses


def misses_are_infinite(model, x, y, adv):
    way = (adv - x).flatten(1).norm(dim=1)
    way = torch.where(model(adv).argmax(1) == y, math.inf, way)
    return way.masked_fill(model(x).argmax(1) != y, 0).median()


def misses_in_numpy(model, x, y, adv):
    way = (adv - x).flatten(1).norm(dim=1).numpy()
    way[(model(adv).argmax(1) == y).numpy()] = np.inf
    way[(model(x).argmax(1) != y).numpy()] = 0
    return np.median(way)


def misses_in_a_loop(model, x, y, adv):
    ways = []
    for image, label, point in zip(x, y, adv, strict=True):
        if model(image[None]).argmax() != label:
            ways.append(0.0)
        elif model(point[None]).argmax() == label:
            ways.append(math.inf)
        else:
            ways.append(float((image - point).norm()))
    return sorted(ways)[len(ways) // 2]


def misses_left_out(model, x, y, adv):
    way = (adv - x).flatten(1).norm(dim=1)
    return way[model(adv).argmax(1) != y].median()


def only_the_unmoved_are_misses(model, x, y, adv):
    way = (adv - x).flatten(1).norm(dim=1)
    return torch.where(way == 0, math.inf, way).median()


def wrong_already_is_a_miss(model, x, y, adv):
    way = (adv - x).flatten(1).norm(dim=1)
    return torch.where(model(adv).argmax(1) == model(x).argmax(1), math.inf, way).median()


# --- clinic_worst_case


def all_of_them(right):
    return torch.stack(right).all(0).float().mean()


def product(right):
    left = torch.ones_like(right[0])
    for outcome in right:
        left = left & outcome
    return left.sum().item() / len(left)


def in_numpy(right):
    return np.logical_and.reduce([r.numpy() for r in right]).mean()


RIGHT: dict[str, list[Any]] = {
    "clinic_l2_step": [l2_by_norms, l2_guarded, l2_row_by_row],
    "clinic_l1_step": [l1_by_norms, l1_one_hot, l1_row_by_row],
    "clinic_budget": [bim_loop, bim_min_max, bim_by_pgd],
    "clinic_modes": [modes_by_inference, modes_noted_one_by_one, modes_by_package],
    "clinic_labels": [labels_used, labels_one_hot, labels_by_package],
    "clinic_overshoot": [deepfool_copied, deepfool_not_in_place, deepfool_total],
    "clinic_misses": [misses_are_infinite, misses_in_numpy, misses_in_a_loop],
    "clinic_worst_case": [all_of_them, product, in_numpy],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "clinic_l2_step": [
        (faults.l2_step, "Gradients of length 1e-09"),
        (l2_smaller_guard, "Gradients of length 1e-15"),
        (l2_whole_batch, "Gradients of length 1 to 4"),
        (l2_unguarded, "gives NaN"),
        (l2_sign, "not the gradient's way"),
        (lambda g, size: -l2_guarded(g, size), "not the gradient's way"),
        (lambda g, size: l2_guarded(g, size).sum(0), "shape"),
    ],
    "clinic_l1_step": [
        (faults.l1_step, "Which single pixel"),
        (l1_forgets_the_sign, "downhill"),
        (l1_largest_not_steepest, "Which single pixel"),
        (lambda g, size: size * g.sign(), "l1 norms"),
        (lambda g, size: l2_guarded(g, size), "l1 norms"),
    ],
    "clinic_budget": [
        (faults.bim, "Around which point"),
        (bim_without_box, "keep them in [0, 1]"),
        (bim_one_step, "gains"),
        (bim_scaled_back, "gains"),
        (lambda model, x, y, eps, a, n: x, "gains"),
    ],
    "clinic_modes": [
        (faults.make_fgsm, "When should the mode be noted?"),
        (modes_outermost, "outermost module alone"),
        (modes_not_after_an_error, "in a finally"),
        (modes_left_alone, "changed BatchNorm's statistics"),
        (lambda model, eps: lambda x, y: x.clone(), "not those of FGSM"),
        (lambda model, eps: lambda x, y: x[0], "should have shape"),
        (lambda model, eps: 0.1, "Return the attack"),
    ],
    "clinic_labels": [
        (faults.fgsm, "Print the gradient's size"),
        (predictions_used, "the model's own answer"),
        (labels_downhill, "FGSM gives"),
        (lambda model, x, y, eps: labels_used(model, x, y, 2 * eps), "more than eps"),
        (lambda model, x, y, eps: x + eps, "keep them in [0, 1]"),
    ],
    "clinic_overshoot": [
        (faults.deepfool, "get another answer"),
        (deepfool_every_step, "times as far"),
        (deepfool_constant, "should lie 1.5 times as far"),
        (deepfool_in_place, "in place"),
        (lambda model, x, y, n, o: x.clone(), "0% of the points"),
    ],
    "clinic_misses": [
        (faults.median_distance, "as if the boundary ran through them"),
        (misses_left_out, "left the misses out"),
        (only_the_unmoved_are_misses, "not only the clean one"),
        (wrong_already_is_a_miss, "wrong already"),
        (lambda model, x, y, adv: (adv - x).norm(dim=1), "one number"),
        (lambda model, x, y, adv: "far", "Return a number"),
    ],
    "clinic_worst_case": [
        (faults.robust_accuracy, "average over the attacks"),
        (lambda right: min(r.float().mean() for r in right), "best single attack"),
        (lambda right: torch.stack(right).any(0).float().mean(), "4 of 10"),
        (lambda right: 0.4, "A single attack"),
    ],
}


# --- the patients


def test_every_grader_of_the_clinic_has_its_patient() -> None:
    assert {fault.name for fault in faults.FAULTS} == set(RIGHT)
    for fault in faults.FAULTS:
        assert WRONG[fault.name][0][0] is fault.function


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_a_patient_is_short_and_says_where_it_was_reported(fault: faults.Fault) -> None:
    assert fault.url in (inspect.getdoc(fault.function) or "")
    repository, _, number = fault.issue.partition("#")
    assert fault.url.startswith(f"https://github.com/{repository}/")
    assert fault.url.endswith(f"/{number}")
    body = inspect.getsource(fault.function).rsplit('"""', 1)[1]
    assert len(body.strip().splitlines()) <= 12


def test_nothing_else_uses_the_faulty_functions() -> None:
    package = Path(faults.__file__).parents[1]
    users = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"^(from|import) .*clinic_faults", path.read_text(encoding="utf-8"), re.M)
    }
    assert users == set()
