"""Graders of the chapter on finance: right answers pass, wrong ones get the sentence that helps."""

from typing import Any

import numpy as np
import torch
from scipy.stats import binom, binomtest


def swap_in_torch(encoded, gradient, blocks, fixed):
    result = encoded.clone()
    for i in range(len(encoded)):
        best, choice = 0.0, None
        for k, block in enumerate(blocks):
            if k == 0 or k in fixed:
                continue
            now = int(encoded[i, block].argmax())
            gain = gradient[i, block] - gradient[i, block][now]
            if gain.max() > best:
                best, choice = float(gain.max()), (block, now, int(gain.argmax()))
        if choice is not None:
            block, now, new = choice
            result[i, block.start + now] = 0
            result[i, block.start + new] = 1
    return result


def swap_by_rows(encoded, gradient, blocks, fixed):
    tried, score = [encoded], [torch.zeros(len(encoded))]
    for k, block in enumerate(blocks):
        if k and k not in fixed:
            for column in range(block.start, block.stop):
                new = encoded.clone()
                new[:, block] = 0
                new[:, column] = 1
                tried.append(new)
                score.append(((new - encoded) * gradient).sum(1))
    return torch.stack(tried)[torch.stack(score).argmax(0), torch.arange(len(encoded))]


def swap_in_numpy(encoded, gradient, blocks, fixed):
    return torch.from_numpy(
        swap_by_rows(encoded, gradient, blocks, fixed).double().numpy().astype(np.float32)
    )


def two_hot(encoded, gradient, blocks, fixed):
    right = swap_in_torch(encoded, gradient, blocks, fixed)
    return torch.maximum(right, encoded)


def fixed_too(encoded, gradient, blocks, fixed):
    return swap_in_torch(encoded, gradient, blocks, ())


def in_place(encoded, gradient, blocks, fixed):
    encoded.copy_(swap_in_torch(encoded, gradient, blocks, fixed))
    return encoded


def every_block(encoded, gradient, blocks, fixed):
    for k in range(1, len(blocks)):
        others = tuple(j for j in range(len(blocks)) if j != k)
        encoded = swap_in_torch(encoded, gradient, blocks, (*others, *fixed))
    return encoded


def largest_slope(encoded, gradient, blocks, fixed):
    result = encoded.clone()
    for i in range(len(encoded)):
        free = [k for k in range(1, len(blocks)) if k not in fixed]
        k = max(free, key=lambda j: float(gradient[i, blocks[j]].max()))
        result[i, blocks[k]] = 0
        result[i, blocks[k].start + int(gradient[i, blocks[k]].argmax())] = 1
    return result


def number_too(encoded, gradient, blocks, fixed):
    result = swap_in_torch(encoded, gradient, blocks, fixed)
    result[:, 0] += 0.1 * gradient[:, 0].sign()
    return result


def half_swapped(encoded, gradient, blocks, fixed):
    return (swap_in_torch(encoded, gradient, blocks, fixed) + encoded) / 2


def gamed(price, bad, accepted, budget):
    return (5 * ((price <= budget) & bad) + (~accepted & ~bad).float()).mean()


def gamed_by_hand(price, bad, accepted, budget):
    total = 0
    for p, b, a in zip(price.tolist(), bad.tolist(), accepted.tolist(), strict=True):
        total += 5 * (p <= budget) if b else 1 * (not a)
    return total / len(price)


def gamed_in_numpy(price, bad, accepted, budget):
    p, b, a = price.numpy(), bad.numpy(), accepted.numpy()
    return np.float64((5 * (b & (p <= budget)) + (~b & ~a)).mean())


def alarm(marked, applied, share, alpha):
    for step, (m, n) in enumerate(zip(marked, applied, strict=True)):
        if binomtest(m, n, share, alternative="greater").pvalue < alpha:
            return step
    return -1


def alarm_by_tail(marked, applied, share, alpha):
    low = binom.sf(np.array(marked) - 1, applied, share) < alpha
    return int(low.argmax()) if low.any() else -1


def alarm_as_tensor(marked, applied, share, alpha):
    return torch.tensor(float(alarm(marked, applied, share, alpha)))


def two_sided(marked, applied, share, alpha):
    for step, (m, n) in enumerate(zip(marked, applied, strict=True)):
        if binomtest(m, n, share).pvalue < alpha:
            return step
    return -1


def more_than(marked, applied, share, alpha):
    low = binom.sf(marked, applied, share) < alpha  # strictly more: one too few
    return int(low.argmax()) if low.any() else -1


RIGHT: dict[str, list[Any]] = {
    "refuse_above": [1 / 6, 0.1667, torch.tensor(1 / 6), np.float32(1 / 6)],
    "one_hot_swap": [swap_in_torch, swap_by_rows, swap_in_numpy],
    "cost_when_gamed": [gamed, gamed_by_hand, gamed_in_numpy],
    "first_alarm": [alarm, alarm_by_tail, alarm_as_tensor],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "refuse_above": [
        (0.5, "both mistakes cost the same"),
        (0.2, "compared with 1 - p"),
        (5 / 6, "other way round"),
        (5, "ratio of the costs"),
        (0.3, "Where do the two lines cross"),
        ("1/6", "type str"),
    ],
    "one_hot_swap": [
        (two_hot, "Is the old one switched off"),
        (fixed_too, "is fixed; it was changed"),
        (in_place, "changed in place"),
        (every_block, "swap one at a time"),
        (largest_slope, "minus the old one's"),
        (number_too, "number in the first column"),
        (half_swapped, "neither"),
        (lambda e, g, b, f: e.clone(), "left as it is"),
        (lambda e, g, b, f: e.numpy(), "not ndarray"),
        (lambda e, g, b, f: e[:1].clone(), "Return shape"),
    ],
    "cost_when_gamed": [
        (lambda p, b, a, m: 8 * gamed(p, b, a, m), "divide by the number"),
        (lambda p, b, a, m: (5 * ((p <= m) & b) + (~(a | (p <= m)) & ~b).float()).mean(),
         "a good risk spend money"),
        (lambda p, b, a, m: gamed(p, b, a, 0), "does not depend on the budget"),
        (lambda p, b, a, m: (((p <= m) & b) + (~a & ~b).float()).mean(), "5 for each"),
        (lambda p, b, a, m: (5 * ((p < m) & b) + (~a & ~b).float()).mean(), "5 for each"),
        (lambda p, b, a, m: p, "one number"),
    ],
    "first_alarm": [
        (two_sided, "the answer is -1"),
        (more_than, "the answer is"),
        (lambda m, n, s, a: 0, "yours is 0"),
        (lambda m, n, s, a: int(np.argmax(m)), "the answer is"),
        (lambda m, n, s, a: next((i for i, k in enumerate(m) if k > 2 * s * n[i]), -1), "the answer is"),
        (lambda m, n, s, a: "2", "type str"),
    ],
}  # fmt: skip

VALUES = {"refuse_above"}
