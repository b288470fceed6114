"""Graders for the chapter on validation: corruptions, model files, the release gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from modelsec.check.grading import grader, require
from modelsec.intervals import Proportion

__all__ = ["gate_rule", "impulse_noise", "pickle_globals"]


@grader("That is the kind of noise which a dead or a saturated pixel makes.")
def impulse_noise(solution: Any) -> None:
    """Grade ``f(x (N, C, H, W), share, generator) -> x``: pixels turn black or white at random."""
    x = 0.25 + 0.5 * torch.rand(40, 3, 20, 20, generator=_seeded(1))
    for share in (0.1, 0.3):  # a share written into the code would pass one of them
        _examine_noise(solution, x, share)
    require(
        torch.equal(solution(x.clone(), 0.3, _seeded(5)), solution(x.clone(), 0.3, _seeded(5))),
        "The same seed gave two results: hand generator=generator to every draw.",
    )
    require(
        not torch.equal(solution(x.clone(), 0.3, _seeded(5)), solution(x.clone(), 0.3, _seeded(6))),
        "Two seeds gave the same result: draw from the generator that you are given, as it is.",
    )


def _examine_noise(solution: Any, x: Tensor, share: float) -> None:
    given = x.clone()
    got = solution(given, share, _seeded(2))
    require(isinstance(got, Tensor), f"Return a tensor, not {type(got).__name__}.")
    require(got.shape == x.shape, f"x has shape {tuple(x.shape)}, your result {tuple(got.shape)}.")
    require(torch.equal(given, x), "Your function changed x in place: make a copy, or torch.where.")
    hit = got != x
    require(hit.any(), "The result equals x: nothing changed.")
    require(
        bool(((got == 0) | (got == 1))[hit].all()),
        "A changed pixel must be exactly 0 or 1. Don't add to it: put something else in its place.",
    )
    require(
        torch.equal(hit.any(1), hit.all(1)),
        "Some pixels changed in one colour and not in the others: draw once for a pixel, shape "
        "(N, 1, H, W), and let it broadcast.",
    )
    dead = hit[:, 0]
    require(
        len(dead.flatten(1).unique(dim=0)) > 1,
        "Every image got the same dead pixels: draw for each image.",
    )
    found = float(dead.float().mean())
    require(
        abs(found - share) <= 0.03,
        f"With share = {share} a share of {found:.2f} of the pixels changed.",
    )
    white = float((got[:, 0] == 1)[dead].float().mean())
    require(
        abs(white - 0.5) <= 0.05,
        f"Of the changed pixels a share of {white:.2f} is white; half and half is wanted. Does a "
        "second draw decide the colour?",
    )
    colours = got.permute(0, 2, 3, 1)[dead]
    require(
        torch.equal(colours.amin(1), colours.amax(1)),
        "A dead pixel is black or white, so its colours are all 0 or all 1.",
    )


_ran: list[str] = []


def _tripwire(*_: object) -> None:
    """What a pickle below calls, should the solution load it."""
    _ran.append("loaded")


_TEXT = b"X%b\x00\x00\x00%b"  # an opcode: text of a length below 256
_PICKLES: tuple[tuple[str, bytes, set[str]], ...] = (
    ("of numbers alone", b"\x80\x02]q\x00(K\x01K\x02e.", set()),
    (
        "of an ordinary dict of weights",
        b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01ctorch\nFloatStorage\nq\x020.",
        {"collections.OrderedDict", "torch.FloatStorage"},
    ),
    (
        "that notices when it is loaded",
        b"\x80\x02cmodelsec.check.validation_files\n_tripwire\n)R.",
        {"modelsec.check.validation_files._tripwire"},
    ),
    (  # below the tripwire, so that a solution which loads never gets here
        "that calls a system command",
        b"\x80\x02cposix\nsystem\nq\x00" + _TEXT % (b"\x06", b"echo 1") + b"q\x01\x85q\x02R.",
        {"posix.system"},
    ),
    (
        "in which the words stand as text, where they do nothing",
        b"\x80\x02" + _TEXT % (b"\x0e", b"cposix\nsystem\n") + b".",
        set(),
    ),
    (
        "that asks for one name twice",
        b"\x80\x02(cbuiltins\neval\ncbuiltins\neval\ncbuiltins\ngetattr\nt.",
        {"builtins.eval", "builtins.getattr"},
    ),
)
_BROKEN = b"\x80\x02cposix\nsystem\n" + _TEXT % (b"\x06", b"echo 1") + b"\x85R"


@grader("You read the program without running it. scan_pickle does the same for newer protocols.")
def pickle_globals(solution: Any) -> None:
    """Grade ``f(content: bytes) -> names``: what a pickle of protocol 2 imports, "module.name"."""
    for what, content, wanted in _PICKLES:
        found = _names(solution, content)
        require(
            not _ran,
            "Your code loaded the pickle, and a command in it ran. Read it with "
            "pickletools.genops, which only lists the opcodes.",
        )
        require(
            found == wanted,
            f"For a pickle {what} the names are {sorted(wanted) or 'none'}; yours are "
            f"{sorted(found) or 'none'}.",
        )
    try:
        found = _names(solution, _BROKEN)
    except ValueError as error:
        require(
            "pickle exhausted" not in str(error),
            "Nearly. A pickle without its last opcode makes genops raise a ValueError, but pickle "
            "itself would have run the command before it noticed. Return what you saw up to there.",
        )
        raise
    require(
        found == {"posix.system"},
        "For a pickle that breaks off after its command the name is posix.system; yours are "
        f"{sorted(found) or 'none'}. It would have run before the break.",
    )


def _names(solution: Any, content: bytes) -> set[str]:
    _ran.clear()
    found = solution(content)
    require(
        not isinstance(found, str) and hasattr(found, "__iter__"),
        f"Return a list or a set of names, not {type(found).__name__}.",
    )
    names = list(found)
    require(
        all(isinstance(name, str) for name in names),
        'Each name must be a text like "posix.system": genops yields (opcode, argument, position).',
    )
    require(
        not any(" " in name for name in names),
        "The argument of GLOBAL is module and name with a space between; join them by a dot.",
    )
    return set(names)


@grader("Two honest runs of one model may still end on either side of the limit: that is chance.")
def gate_rule(solution: Any) -> None:
    """Grade ``f(measured: Proportion | None, at_least) -> bool``, judged on the pessimistic end."""
    require(
        not _decision(solution(None, 0.5)),
        "None means that nobody measured it. What was not measured must not pass.",
    )
    for hits, n, at_least, why in (
        (990, 1000, 0.9, "its whole interval lies above the limit"),
        (700, 1000, 0.9, "its whole interval lies below the limit"),
        (93, 100, 0.9, "the estimate is above the limit, the lower end of the interval is not"),
        (930, 1000, 0.9, "the same share of ten times as many images has a lower end above it"),
        (87, 100, 0.9, "only the upper end of the interval is above the limit"),
        (20, 20, 0.9, "all right, but 20 images don't exclude an accuracy below 0.9"),
        (0, 5, 0.0, "a limit of 0 is kept by everything that was measured"),
    ):
        measured = Proportion(hits, n)
        low, _ = measured.interval
        wanted, got = low >= at_least, _decision(solution(measured, at_least))
        require(
            got == wanted,
            f"{hits} of {n} right, at least {at_least:g} required: that must "
            f"{'pass' if wanted else 'fail'}, since {why} (interval from {low:.3f}).",
        )


def _decision(answer: Any) -> bool:
    """True or False, of whatever kind: Python's, NumPy's, or a tensor of one element."""
    plain = answer.item() if hasattr(answer, "item") else answer
    require(isinstance(plain, bool), f"Return True or False, not {type(answer).__name__}.")
    return bool(plain)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
