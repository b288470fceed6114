"""Our iterates equal those of torchattacks, Foolbox, ART and adv-lib: from the same start, by the same step rule.

The peers return their last iterate, so each is run with 1, 2, ... steps, and compared with what our callback sees.
All of them climb cross-entropy; a mean over the batch in place of a sum changes no direction.

Where the peers' rules differ from ours, and what is compared then:

* torchattacks adds 1e-10 to the gradient's length in l2, to a gradient that the mean has made 64 times smaller.
  On images of which the network is sure that shortens the step; we pass it an epsilon of 0 and compare all images.
* ART's PGD clips to the box before it projects on the l2 ball, we (as Foolbox and torchattacks) after. The two agree
  where the box is out of reach, so ART's l2 attacks are compared on images of lower contrast, from 0.25 to 0.75.
* adv-lib returns the point that fools, or the clean image. Its model is asked about its iterates. No PGD in l2.
* MI-FGSM's gradients are divided by their mean size by some and by their sum by others: the steps are the same.
* In l1 each library steps in another way (Foolbox along the gradient, ART on one pixel without regard to the box), so
  only the projection on ball and box is compared, with adv-lib's, and the strength with its APGD.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from agreement_table import Agreement, record
from torch import Tensor, nn

from modelsec.attacks import bim, fgsm, mi_fgsm, pgd
from modelsec.attacks.norms import NORMS
from modelsec.data import mnist
from modelsec.losses import cross_entropy
from modelsec.zoo import load_model

pytestmark = pytest.mark.peers

STEPS = 6
EPS = {"linf": 0.1, "l2": 0.24}
STEP_SIZE = {"linf": 0.03, "l2": 0.1}  # the ball's wall is met on the way
TOLERANCE = 1e-5


class Row(NamedTuple):
    """One line of the table."""

    library: str
    attack: str
    norm: str
    images: int
    difference: float


def test_iterates_agree_with_the_peers(capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row for compare in (torchattacks, foolbox, art, adv_lib) for row in compare()]
    with capfd.disabled():  # on stderr, which reaches the terminal from pytest-xdist's workers too
        print(table(rows), file=sys.stderr)
    assert {(row.library, row.attack, row.norm) for row in rows} >= {
        (library, "pgd", norm)
        for library in ("torchattacks", "foolbox", "adversarial-robustness-toolbox")
        for norm in ("linf", "l2")
    } | {("adv-lib", "pgd", "linf"), ("adv-lib", "projection", "l1")}
    for attack in ("fgsm", "bim", "mi_fgsm"):
        assert len({row.library for row in rows if row.attack == attack}) >= 2, attack
    for row in rows:
        assert row.images >= 64, row
        assert row.difference <= TOLERANCE, row
    record("gradient_iterates", [seen(row) for row in rows])


def seen(row: Row) -> Agreement:
    """A line of the page."""
    what = {"projection": "projection on ball and box", "fgsm": "the result"}
    return Agreement(
        row.library,
        {"projection": "pgd"}.get(row.attack, row.attack),
        row.norm,
        what.get(row.attack, f"iterates of {STEPS} steps"),
        row.images,
        f"largest difference {row.difference:.0e}",
    )


def table(rows: list[Row]) -> str:
    lines = [
        f"\n{'library':<32}{'version':<9}{'attack':<12}{'norm':<6}{'images':<8}largest difference"
    ]
    for row in rows:
        lines.append(
            f"{row.library:<32}{version(row.library):<9}{row.attack:<12}{row.norm:<6}{row.images:<8}"
            f"{row.difference:.1e} of a pixel's range"
        )
    return "\n".join(lines)


def scenes(contrast: float = 1.0) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Both networks of the zoo, with 64 digits."""
    digits = mnist()
    x = 0.5 + contrast * (digits.x_test[:64] - 0.5)
    for name in ("net", "convnet"):
        yield load_model(name), x, digits.y_test[:64]


def iterates(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    start: Tensor | None = None,
    attack: Callable[..., Tensor] = pgd,
) -> list[Tensor]:
    """Our iterates after 1, 2, ... steps, from x unless another start is given."""
    path: list[Any] = []
    begin = {"start": x if start is None else start} if attack is pgd else {}
    attack(
        model, x, y, eps=EPS[norm], norm=norm, steps=STEPS, step_size=STEP_SIZE[norm],
        loss=cross_entropy, early_stop=False, callback=path.append, **begin,
    )  # fmt: skip
    return [point.adv for point in path[1:]]


def gap(ours: Tensor | list[Tensor], theirs: Tensor | list[Tensor]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def worst(
    library: str, attack: str, norm: str, measure: Callable[..., float], contrast: float = 1.0
) -> Row:
    gaps = [measure(*scene) for scene in scenes(contrast)]
    return Row(library, attack, norm, 64 * len(gaps), max(gaps))


def torchattacks() -> Iterator[Row]:
    import torchattacks as peer

    def one_step(model: nn.Module, x: Tensor, y: Tensor) -> float:
        ours = fgsm(model, x, y, eps=EPS["linf"], loss=cross_entropy)
        return gap(ours, peer.FGSM(model, eps=EPS["linf"])(x, y))

    def linf(model: nn.Module, x: Tensor, y: Tensor) -> float:
        rule = {"eps": EPS["linf"], "alpha": STEP_SIZE["linf"], "random_start": False}
        theirs = [peer.PGD(model, steps=k, **rule)(x, y) for k in range(1, STEPS + 1)]
        return gap(iterates(model, x, y, "linf"), theirs)

    def l2(model: nn.Module, x: Tensor, y: Tensor) -> float:
        rule = {"eps": EPS["l2"], "alpha": STEP_SIZE["l2"], "random_start": False}
        rule |= {"eps_for_division": 0}
        theirs = [peer.PGDL2(model, steps=k, **rule)(x, y) for k in range(1, STEPS + 1)]
        return gap(iterates(model, x, y, "l2"), theirs)

    def plain(model: nn.Module, x: Tensor, y: Tensor) -> float:
        rule = {"eps": EPS["linf"], "alpha": STEP_SIZE["linf"]}
        theirs = [peer.BIM(model, steps=k, **rule)(x, y) for k in range(1, STEPS + 1)]
        return gap(iterates(model, x, y, "linf", attack=bim), theirs)

    def momentum(model: nn.Module, x: Tensor, y: Tensor) -> float:
        rule = {"eps": EPS["linf"], "alpha": STEP_SIZE["linf"], "decay": 1.0}
        theirs = [peer.MIFGSM(model, steps=k, **rule)(x, y) for k in range(1, STEPS + 1)]
        return gap(iterates(model, x, y, "linf", attack=mi_fgsm), theirs)

    yield worst("torchattacks", "fgsm", "linf", one_step)
    yield worst("torchattacks", "bim", "linf", plain)
    yield worst("torchattacks", "mi_fgsm", "linf", momentum)
    yield worst("torchattacks", "pgd", "linf", linf)
    yield worst("torchattacks", "pgd", "l2", l2)


def foolbox() -> Iterator[Row]:
    import eagerpy
    import foolbox as peer

    kinds = {
        "linf": (
            peer.attacks.LinfFastGradientAttack,
            peer.attacks.LinfProjectedGradientDescentAttack,
        ),
        "l2": (peer.attacks.L2FastGradientAttack, peer.attacks.L2ProjectedGradientDescentAttack),
    }
    for norm, (fast, projected) in kinds.items():

        def one_step(
            model: nn.Module, x: Tensor, y: Tensor, norm: str = norm, fast: type = fast
        ) -> float:
            theirs = fast(random_start=False).run(
                peer.PyTorchModel(model, (0, 1)), x, y, epsilon=EPS[norm]
            )
            return gap(fgsm(model, x, y, eps=EPS[norm], norm=norm, loss=cross_entropy), theirs)

        def path(
            model: nn.Module, x: Tensor, y: Tensor, norm: str = norm, projected: type = projected
        ) -> float:
            noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5
            start = (x + EPS[norm] * noise / (1 if norm == "linf" else noise[0].norm())).clamp(0, 1)

            class FromStart(projected):  # type: ignore[misc, valid-type]
                def get_random_start(self, x0: Any, epsilon: float) -> Any:
                    return eagerpy.astensor(start)

            theirs = [
                FromStart(abs_stepsize=STEP_SIZE[norm], steps=k, random_start=True).run(
                    peer.PyTorchModel(model, (0, 1)), x, y, epsilon=EPS[norm]
                )
                for k in range(1, STEPS + 1)
            ]
            return gap(iterates(model, x, y, norm, start), theirs)

        basic = {
            "linf": peer.attacks.LinfBasicIterativeAttack,
            "l2": peer.attacks.L2BasicIterativeAttack,
        }[norm]

        def plain(
            model: nn.Module, x: Tensor, y: Tensor, norm: str = norm, basic: type = basic
        ) -> float:
            theirs = [
                basic(abs_stepsize=STEP_SIZE[norm], steps=k).run(
                    peer.PyTorchModel(model, (0, 1)), x, y, epsilon=EPS[norm]
                )
                for k in range(1, STEPS + 1)
            ]
            return gap(iterates(model, x, y, norm, attack=bim), theirs)

        yield worst("foolbox", "bim", norm, plain)
        yield worst("foolbox", "fgsm", norm, one_step)
        yield worst("foolbox", "pgd", norm, path)


def art() -> Iterator[Row]:
    from art.attacks.evasion import (
        BasicIterativeMethod,
        FastGradientMethod,
        MomentumIterativeMethod,
    )
    from art.attacks.evasion import ProjectedGradientDescentPyTorch as Projected
    from art.estimators.classification import PyTorchClassifier

    for norm, order, contrast in (("linf", np.inf, 1.0), ("l2", 2, 0.5)):

        def wrap(model: nn.Module) -> PyTorchClassifier:
            return PyTorchClassifier(
                model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
            )

        def one_step(
            model: nn.Module, x: Tensor, y: Tensor, norm: str = norm, order: float = order
        ) -> float:
            attack = FastGradientMethod(wrap(model), norm=order, eps=EPS[norm], batch_size=64)
            theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
            ours = fgsm(model, x, y, eps=EPS[norm], norm=norm, loss=cross_entropy)
            return gap(ours, theirs)

        def path(
            model: nn.Module, x: Tensor, y: Tensor, norm: str = norm, order: float = order
        ) -> float:
            rule = {"norm": order, "eps": EPS[norm], "eps_step": STEP_SIZE[norm]}
            rule |= {"batch_size": 64, "verbose": False}
            theirs = [
                torch.from_numpy(
                    Projected(wrap(model), max_iter=k, **rule).generate(x.numpy(), y.numpy())
                )
                for k in range(1, STEPS + 1)
            ]
            return gap(iterates(model, x, y, norm), theirs)

        for attack, kind in ((bim, BasicIterativeMethod), (mi_fgsm, MomentumIterativeMethod)):

            def old_path(
                model: nn.Module,
                x: Tensor,
                y: Tensor,
                attack: Callable[..., Tensor] = attack,
                kind: type = kind,
            ) -> float:
                rule = {"eps": EPS["linf"], "eps_step": STEP_SIZE["linf"]}
                rule |= {"batch_size": 64, "verbose": False}
                theirs = [
                    torch.from_numpy(
                        kind(wrap(model), max_iter=k, **rule).generate(x.numpy(), y.numpy())
                    )
                    for k in range(1, STEPS + 1)
                ]
                return gap(iterates(model, x, y, "linf", attack=attack), theirs)

            if norm == "linf":
                name = attack.__name__
                yield worst("adversarial-robustness-toolbox", name, norm, old_path)

        yield worst("adversarial-robustness-toolbox", "fgsm", norm, one_step, contrast)
        yield worst("adversarial-robustness-toolbox", "pgd", norm, path, contrast)


def adv_lib() -> Iterator[Row]:
    from benchmarks.libraries import without_visdom

    without_visdom()
    from adv_lib.attacks import pgd_linf
    from adv_lib.attacks.auto_pgd import l1_projection

    def projection(model: nn.Module, x: Tensor, y: Tensor) -> float:
        gaps = []
        for seed, (eps, stretch) in enumerate(((1.0, 0.5), (5.0, 2.0), (20.0, 2.0))):
            change = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
            far, radius = x + stretch * change, torch.full((len(x),), eps)
            ours = NORMS["l1"].project(far, x, radius.view(-1, 1, 1, 1))
            gaps.append(gap(ours, far + l1_projection(x, far - x, radius)))
        return max(gaps)

    yield worst("adv-lib", "projection", "l1", projection)

    def path(model: nn.Module, x: Tensor, y: Tensor) -> float:
        asked: list[Tensor] = []

        def watched(images: Tensor) -> Tensor:
            asked.append(images.detach())
            return model(images)

        rule = {"absolute_step_size": STEP_SIZE["linf"], "random_init": False}
        # one step more: it is not asked about its last point
        pgd_linf(watched, x, y, EPS["linf"], steps=STEPS + 1, **rule)
        return gap(iterates(model, x, y, "linf"), asked[1:])

    yield worst("adv-lib", "pgd", "linf", path)


def left(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def test_random_starts_are_not_weaker_than_the_peers() -> None:
    """PGD on 1000 digits, and in l1 the APGD that was made for it, within what chance allows."""
    import torchattacks as peer

    from benchmarks.libraries import without_visdom

    without_visdom()
    from adv_lib.attacks.auto_pgd import apgd

    digits, model = mnist(), load_model("convnet").requires_grad_(False)
    x, y = digits.x_test, digits.y_test
    drawn = {"steps": 20, "generator": torch.Generator().manual_seed(0)}
    rule = {"eps": 0.1, "steps": 20, "alpha": 0.0125, "random_start": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = {
            ("linf", 0.1): left(model, peer.PGD(model, **rule)(x, y), y),
            ("l1", 5.0): left(model, apgd(model, x, y, 5.0, 1, n_iter=20, loss_function="ce"), y),
            ("l1", 10.0): left(model, apgd(model, x, y, 10.0, 1, n_iter=20, loss_function="ce"), y),
        }
    rows = []
    for (norm, eps), accuracy in theirs.items():
        ours = left(model, pgd(model, x, y, eps=eps, norm=norm, **drawn), y)
        chance = 1.96 * (2 * accuracy * (1 - accuracy) / len(x)) ** 0.5
        assert ours <= accuracy + chance, (norm, eps, ours, accuracy)
        library, other = ("torchattacks", "PGD") if norm == "linf" else ("adv-lib", "APGD")
        what = f"accuracy left at eps {eps:g}, 20 steps, against {other}"
        rows.append(
            Agreement(library, "pgd", norm, what, len(x), f"ours {ours:.3f}, theirs {accuracy:.3f}")
        )
    record("gradient_left", rows)
