"""The audit cards of the chapter on traffic, before the repair and after it."""

from __future__ import annotations

from typing import Any

import torch

from modelsec import zoo
from modelsec.audit import Report, Section, audit
from modelsec.intervals import Proportion
from modelsec.zoo.results import study
from modelsec.zoo.studies import traffic_road as road
from modelsec.zoo.studies.traffic import FRAMES, approaches, data, unpacked, vote_rates

__all__ = ["AFTER", "SECTIONS", "card"]

SECTIONS = ("clean", "validation", "evasion", "spatial", "protocol")
AFTER = "signs_covered"


def card(name: str, n: int = 320, sections: tuple[str, ...] = SECTIONS) -> Report:
    """The audit card of a sign network: sections of the audit, and two of this field.

    Args:
        name: in the zoo.
        n: how many test pictures, and pictures of the stop sign with its sticker.
        sections: of :func:`modelsec.audit.audit`.

    Returns:
        The report.
    """
    model = zoo.load_model(name)
    report = audit(
        model, data(), name=name, n=n, radii=(4 / 255, 8 / 255), sections=sections, progress=False
    )
    paint = unpacked(zoo.load_result("traffic_stickers")["stickers"][name])
    stuck = {
        kind: road.stuck_on(road.stop_sign()[None], colours, road.bars())[0]
        for kind, colours in (("trained", paint), ("grey", torch.full_like(paint, 0.5)))
    }
    read = {
        kind: Proportion(int((road.reads(model, sign, n, 7) == road.GOAL).sum()), n)
        for kind, sign in stuck.items()
    }
    m = n // 4
    usual, attacked = approaches(7, m), approaches(7, m, stuck["trained"])
    right = Proportion(vote_rates(model, usual.x, usual.y)["sum"], m)
    fooled = Proportion(vote_rates(model, attacked.x, torch.full((m,), road.GOAL))["sum"], m)
    own = (
        Section(
            f"A sticker of two bars, made for this network, turns {read['trained']} of the pictures "
            f"of a stop sign into limit 80; a grey one {read['grey']}.",
            "warning" if read["trained"].interval[0] > 0.05 else "info",
            {f"{kind}": share for kind, share in read.items()},
            name="sticker",
            title="A sticker on the sign",
        ),
        Section(
            f"Votes over {FRAMES} frames read {right} of the approaches right. With the sticker on a "
            f"stop sign they say limit 80 in {fooled}.",
            "warning" if fooled.interval[0] > 0.05 else "info",
            {"right": right, "fooled": fooled},
            name="vote",
            title="A vote over an approach",
        ),
    )
    return Report(report.subject, (*report.sections, *own))


@study(
    "traffic_cards",
    about="the audit cards of the sign network before and after its repair",
    n=320,
    seeds=(0,),
)
def traffic_cards(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Under "before" and "after": name, sections (title, state, text) and measures."""
    found = {}
    for when, name in (("before", "signs"), ("after", AFTER)):
        made = card(name)
        found[when] = {
            "name": name,
            "sections": made.told,
            "measures": {
                key: [value.hits, value.n] if isinstance(value, Proportion) else value
                for key, value in made.measures.items()
            },
        }
    return found
