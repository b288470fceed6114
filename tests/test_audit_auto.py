"""The audit's section on the standard protocol."""

from torch import Tensor, nn

from modelsec.audit import Section, Subject
from modelsec.audit.auto import protocol
from modelsec.data import mnist
from modelsec.intervals import Proportion
from modelsec.zoo import load_model

DIGITS, NET = mnist(), load_model("net")


def look(model: nn.Module, **different: object) -> Section:
    return protocol(Subject(model, DIGITS, n=16, **{"radii": (0.01, 0.02, 0.03)} | different))


def test_it_tells_what_each_attack_leaves_at_the_middle_radius() -> None:
    found = look(NET)
    assert found.verdict == "info"
    assert "eps 0.02" in found.summary
    assert list(found.measures) == ["worst_case", "apgd-ce", "apgd-t", "fmn", "square"]
    left = [float(value) for value in found.measures.values()]
    assert left[1:] == sorted(left[1:], reverse=True)
    assert left[0] == left[-1]
    assert all(isinstance(value, Proportion) and value.n == 16 for value in found.measures.values())
    assert len(found.table) == 4
    assert found == look(NET)


def test_it_warns_where_the_protocol_can_not_be_trusted() -> None:
    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET((x * 8).round() / 8 + 0 * x)

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return NET(x.detach())

    blind, none = look(Rounded()), look(Detached())
    assert blind.verdict == none.verdict == "warning"
    assert "gradient is zero" in blind.summary
    assert "could not be run" in none.summary
    assert "BPDA" in none.summary


def test_in_l1_it_is_skipped_and_in_l2_not() -> None:
    assert look(NET, norm="l1").verdict == "skipped"
    assert "l2" in look(NET, norm="l2", radii=(0.5,)).summary


def test_no_more_than_a_hundred_images() -> None:
    found = protocol(Subject(NET, DIGITS, n=1000, radii=(0.3,)))  # nothing is left: quick
    assert found.measures["worst_case"].n == 100
