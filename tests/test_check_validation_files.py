"""Graders of the chapter on validation: corruptions, model files, the gate."""

import contextlib
import pickle
import pickletools
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelsec.check import validation_files
from modelsec.intervals import wilson
from modelsec.validation import Requirement, corrupt, release_gate, scan_pickle

# --- impulse_noise


def with_where(x, share, generator):
    shape = (len(x), 1, *x.shape[2:])
    hit = torch.rand(shape, generator=generator) < share
    return torch.where(hit, (torch.rand(shape, generator=generator) < 0.5).float(), x)


def with_one_draw(x, share, generator):
    u = torch.rand(len(x), 1, *x.shape[2:], generator=generator).expand_as(x)
    out = x.clone()
    out[u < share / 2] = 0
    out[u > 1 - share / 2] = 1
    return out


def pixel_by_index(x, share, generator):
    out = x.clone()
    for i in range(len(x)):
        dead = torch.rand(x.shape[2:], generator=generator) < share
        colour = torch.randint(2, x.shape[2:], generator=generator).float()
        out[i][:, dead] = colour[dead]
    return out


def noise(shape=lambda x: (len(x), 1, *x.shape[2:]), white=0.5, factor=1.0):
    def corruption(x, share, generator):
        hit = torch.rand(shape(x), generator=generator) < factor * share
        colour = (torch.rand(shape(x), generator=generator) < white).float()
        return torch.where(hit, colour, x)

    return corruption


def in_place(x, share, generator):
    x.copy_(with_where(x, share, generator))
    return x


def draws_a_colour_for_each_channel(x, share, generator):
    hit = torch.rand(len(x), 1, *x.shape[2:], generator=generator) < share
    return torch.where(hit, (torch.rand(x.shape, generator=generator) < 0.5).float(), x)


def own_seed(x, share, generator):
    return with_where(x, share, torch.Generator().manual_seed(0))


# --- pickle_globals


def by_genops(content):
    found = []
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                found.append(argument.replace(" ", "."))
    except ValueError:
        pass
    return found


def by_arrows(content):
    names = set()
    steps = pickletools.genops(content)
    while True:
        try:
            opcode, argument, _ = next(steps)
        except (StopIteration, ValueError):
            return names
        if opcode.code == "c":
            module, name = argument.split(" ")
            names.add(f"{module}.{name}")


def by_the_package(content):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.pkl"
        path.write_bytes(content)
        return scan_pickle(path).globals


def stops_at_the_break(content):
    return {a.replace(" ", ".") for op, a, _ in pickletools.genops(content) if op.name == "GLOBAL"}


def by_searching(content):
    return {b".".join(pair).decode() for pair in re.findall(rb"c([\w.]+)\n(\w+)\n", content)}


def loads_it(content):
    with contextlib.suppress(Exception):
        pickle.loads(content)  # noqa: S301
    return by_genops(content)


def nothing_if_broken(content):
    try:
        return list(stops_at_the_break(content))
    except ValueError:
        return []


# --- gate_rule


def by_lower_end(measured, at_least):
    return measured is not None and measured.interval[0] >= at_least


def by_wilson(measured, at_least):
    if measured is None:
        return False
    return np.bool_(wilson(measured.hits, measured.n)[0] >= at_least)


def by_gate(measured, at_least):
    measures = {} if measured is None else {"m": measured}
    return release_gate(measures, [Requirement("m", at_least=at_least)]).passed


def judged_on(value):
    return lambda measured, at_least: measured is not None and value(measured) >= at_least


RIGHT: dict[str, list[Any]] = {
    "impulse_noise": [with_where, with_one_draw, pixel_by_index],
    "pickle_globals": [by_genops, by_arrows, by_the_package],
    "gate_rule": [by_lower_end, by_wilson, by_gate],
}

WRONG: dict[str, list[tuple[Any, str]]] = {
    "impulse_noise": [
        (noise(shape=lambda x: x.shape), "in one colour and not in the others"),
        (noise(shape=lambda x: (1, 1, *x.shape[2:])), "the same dead pixels"),
        (noise(white=1.0), "1.00 is white; half and half"),
        (noise(factor=0.5), "With share = 0.1 a share of 0.05"),
        (lambda x, s, g: noise()(x, 0.1, g), "With share = 0.3 a share of 0.11"),
        (lambda x, s, g: with_where(x, s, None), "The same seed gave two results"),
        (own_seed, "Two seeds gave the same result"),
        (in_place, "in place"),
        (draws_a_colour_for_each_channel, "all 0 or all 1"),
        (lambda x, s, g: x + s * torch.randn(x.shape, generator=g), "exactly 0 or 1"),
        (lambda x, s, g: x, "nothing changed"),
        (lambda x, s, g: with_where(x, s, g)[:, :1], "your result (40, 1, 20, 20)"),
        (lambda x, s, g: with_where(x, s, g).numpy(), "not ndarray"),
        (lambda x, s, g: corrupt(x, "gaussian_noise", 1, g), "exactly 0 or 1"),
    ],
    "pickle_globals": [
        (stops_at_the_break, "Return what you saw up to there"),
        (nothing_if_broken, "yours are none. It would have run before the break"),
        (by_searching, "stand as text"),
        (loads_it, "a command in it ran"),
        (lambda c: [], "an ordinary dict of weights the names are"),
        (lambda c: [a for op, a, _ in pickletools.genops(c) if op.name == "GLOBAL"], "join them by a dot"),
        (lambda c: list(pickletools.genops(c)), "genops yields"),
        (lambda c: "posix.system", "not str"),
        (lambda c: [n for n in by_genops(c) if "torch" not in n], "['collections.OrderedDict', 'torch.FloatStorage']"),
        (lambda c: len(by_genops(c)), "not int"),
    ],
    "gate_rule": [
        (judged_on(float), "the estimate is above the limit, the lower end"),
        (judged_on(lambda m: m.interval[1]), "93 of 100 right"),
        (lambda m, limit: m is None or m.interval[0] >= limit, "must not pass"),
        (judged_on(lambda m: m.value - 0.05), "the same share of ten times as many"),
        (judged_on(lambda m: m.value - 1.96 * (m.value * (1 - m.value) / m.n) ** 0.5), "20 images"),
        (lambda m, limit: False, "must pass"),
        (lambda m, limit: m is not None and m.interval[0] > limit, "a limit of 0"),
        (lambda m, limit: "pass", "True or False, not str"),
        (lambda m, limit: m.interval[0] >= limit, "AttributeError"),
        (lambda m, limit: m is not None and m.interval[0] <= limit, "990 of 1000"),
    ],
}  # fmt: skip


def test_the_grader_s_pickles_are_what_it_says() -> None:
    for what, content, wanted in validation_files._PICKLES:
        assert set(by_genops(content)) == wanted, what
        assert list(pickletools.genops(content))[-1][0].name == "STOP"
    validation_files._ran.clear()
    (wire,) = (content for what, content, _ in validation_files._PICKLES if "notices" in what)
    pickle.loads(wire)  # noqa: S301  (the grader's own)
    assert validation_files._ran == ["loaded"]
    assert set(by_genops(validation_files._BROKEN)) == {"posix.system"}
