"""Corruptions: the contract that all kinds keep, one by one what each does, and the report."""

import math
from pathlib import Path

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from modelsec.data import mnist
from modelsec.intervals import Proportion
from modelsec.validation.corruption_report import CorruptionReport, corruption_report
from modelsec.validation.corruptions import KINDS, SEVERITIES, corrupt, corruption_table
from modelsec.zoo import load_model

each_kind = pytest.mark.parametrize("kind", KINDS)
DIGITS = mnist()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(
    n: int = 4, size: tuple[int, int] = (24, 33), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Smooth colour images, no two alike."""
    coarse = torch.rand(n, 3, 5, 5, generator=seeded(7))
    return tv.resize(coarse, list(size), antialias=True).clamp(0, 1).to(dtype)


def distance(x: Tensor, kind: str, severity: int) -> float:
    return (corrupt(x, kind, severity, seeded()) - x).flatten(1).norm(dim=1).mean().item()


# --- the contract -------------------------------------------------------------------------------


def test_there_are_enough_kinds_of_every_family() -> None:
    assert len(KINDS) >= 12
    families = [kind.family for kind in KINDS.values()]
    assert set(families) == {"noise", "blur", "light", "geometry", "detail", "cover"}
    assert all(families.count(family) >= 2 for family in families)
    assert all(len(kind.levels) == len(SEVERITIES) == 5 for kind in KINDS.values())


@each_kind
@settings(max_examples=8)
@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    sides=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    severity=st.sampled_from(SEVERITIES),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
def test_contract(
    kind: str,
    n: int,
    channels: int,
    sides: tuple[int, int],
    severity: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    x = torch.rand(n, channels, *sides, generator=seeded(seed)).to(dtype)
    before = x.clone()
    with global_generators_untouched():
        got = corrupt(x, kind, severity, seeded(seed))
        again = corrupt(x, kind, severity, seeded(seed))
    assert torch.equal(x, before)
    assert (got.shape, got.dtype, got.device) == (x.shape, x.dtype, x.device)
    assert torch.equal(got, again)
    assert got.min() >= 0  # also false for NaN
    assert got.max() <= 1
    assert not torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()


@each_kind
def test_a_higher_severity_is_further_away(kind: str) -> None:
    for x in (DIGITS.x_test[:200], photos(64)):
        distances = [distance(x, kind, severity) for severity in SEVERITIES]
        assert distances == sorted(set(distances)), distances


@each_kind
def test_black_and_white_images_and_an_empty_batch_are_no_exception(kind: str) -> None:
    for value in (0.0, 1.0):
        x = torch.full((2, 1, 16, 16), value)
        got = corrupt(x, kind, 5, seeded())
        assert got.min() >= 0
        assert got.max() <= 1
    assert corrupt(torch.zeros(0, 3, 16, 20), kind, 1).shape == (0, 3, 16, 20)


RANDOM = [
    kind
    for kind in KINDS
    if kind not in {"gaussian_blur", "brightness", "contrast", "scale", "pixelate", "jpeg"}
]


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_drawn_differs_by_seed_and_image_and_comes_from_the_global_generator_if_none_is_given(
    kind: str,
) -> None:
    x = DIGITS.x_test[3:4].expand(8, -1, -1, -1)
    first = corrupt(x, kind, 3, seeded(1))
    assert not torch.equal(first, corrupt(x, kind, 3, seeded(2)))
    assert len(first.flatten(1).unique(dim=0)) >= 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(first, corrupt(x, kind, 3))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(RANDOM)))
def test_what_draws_nothing_is_the_same_for_every_seed(kind: str) -> None:
    x = DIGITS.x_test[:4]
    with global_generators_untouched():
        assert torch.equal(corrupt(x, kind, 3), corrupt(x, kind, 3, seeded(5)))


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"jpeg"}))  # its codec runs on the CPU
def test_all_happens_on_the_images_device(kind: str) -> None:
    x = torch.rand(2, 3, 20, 16, device="meta")
    assert corrupt(x, kind, 3).device.type == "meta"
    with FakeTensorMode():
        x = torch.rand(2, 3, 20, 16, device="cuda")
        assert corrupt(x, kind, 3, torch.Generator()).device.type == "cuda"


# --- what each does -----------------------------------------------------------------------------


def test_noise_has_the_size_that_its_level_says() -> None:
    grey = torch.full((20, 1, 64, 64), 0.5)
    for severity, level in zip(SEVERITIES, KINDS["gaussian_noise"].levels, strict=True):
        if level <= 0.1:  # above that, clipping cuts the tails
            noise = corrupt(grey, "gaussian_noise", severity, seeded()) - 0.5
            assert noise.std().item() == pytest.approx(level, rel=0.02)
        changed = corrupt(grey, "impulse_noise", severity, seeded())
        share = KINDS["impulse_noise"].levels[severity - 1]
        assert (changed != 0.5).float().mean().item() == pytest.approx(share, rel=0.1)
        assert set(changed.unique().tolist()) == {0.0, 0.5, 1.0}
    photons = corrupt(grey, "shot_noise", 1, seeded())
    wanted = math.sqrt(0.5 / KINDS["shot_noise"].levels[0])  # a Poisson count's standard deviation
    assert photons.std().item() == pytest.approx(wanted, rel=0.05)
    assert torch.equal(corrupt(0 * grey, "shot_noise", 5, seeded()), 0 * grey)  # no light, no noise


def test_a_pixel_s_colours_are_hit_together() -> None:
    x = photos()
    hit = corrupt(x, "impulse_noise", 5, seeded()) != x
    assert torch.equal(hit.any(1), hit.all(1))


@pytest.mark.parametrize("sides", [(28, 28), (20, 36)])
@pytest.mark.parametrize("severity", [1, 4])
def test_geometry_agrees_with_torchvision(sides: tuple[int, int], severity: int) -> None:
    x = photos(1, sides)
    angle = KINDS["rotate"].levels[severity - 1]
    slope = math.degrees(math.atan(KINDS["shear"].levels[severity - 1]))
    factor = KINDS["scale"].levels[severity - 1]
    middle = [sides[1] / 2, sides[0] / 2]

    def affine(**changes) -> Tensor:
        options = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | changes
        return tv.affine(x, interpolation=tv.InterpolationMode.BILINEAR, center=middle, **options)

    def close(kind: str, *wanted: Tensor) -> bool:
        got = corrupt(x, kind, severity, seeded())
        return any((got - one)[:, :, 2:-2, 2:-2].abs().max() < 1e-3 for one in wanted)

    assert close("rotate", affine(angle=angle), affine(angle=-angle))
    assert close("shear", affine(shear=[slope, 0.0]), affine(shear=[-slope, 0.0]))
    assert close("scale", affine(scale=factor))


def test_turning_goes_to_both_sides() -> None:
    x = DIGITS.x_test[3:4].expand(20, -1, -1, -1)
    for kind in ("rotate", "shear"):
        assert len(corrupt(x, kind, 3, seeded()).flatten(1).unique(dim=0)) == 2


def test_translate_moves_by_its_level() -> None:
    x = torch.zeros(50, 1, 40, 40)
    x[:, :, 18:22, 18:22] = 1
    moved = corrupt(x, "translate", 5, seeded())
    places = torch.arange(40.0) - 19.5
    mass = moved.sum((1, 2, 3))
    down = (moved.sum((1, 3)) * places).sum(1) / mass
    right = (moved.sum((1, 2)) * places).sum(1) / mass
    far = torch.stack([down, right]).norm(dim=0) / 40
    assert torch.allclose(far, torch.full((50,), KINDS["translate"].levels[4]), atol=1e-3)
    assert all(bool((way > 1).any() and (way < -1).any()) for way in (down, right))


def test_blur_and_pixels_keep_the_amount_of_light() -> None:
    x = torch.zeros(1, 1, 40, 40)
    x[:, :, 10:30, 10:30] = torch.rand(20, 20, generator=seeded())
    for kind in ("gaussian_blur", "motion_blur", "pixelate"):
        got = corrupt(x, kind, 2, seeded())
        assert got.sum().item() == pytest.approx(x.sum().item(), rel=0.03), kind
        assert got.std() < x.std()


def test_motion_blurs_along_one_direction_only() -> None:
    dot = torch.zeros(1, 1, 41, 41)
    dot[:, :, 20, 20] = 1
    seen = corrupt(dot, "motion_blur", 5, seeded())[0, 0]
    places = torch.stack(torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij"))
    centred = (places - 20).flatten(1)
    spread = (seen.flatten() * centred) @ centred.T / seen.sum()
    narrow, wide = torch.linalg.eigvalsh(spread).tolist()
    assert wide > 8 * narrow


def test_fog_lightens_and_low_contrast_flattens() -> None:
    x = photos()
    assert (corrupt(x, "fog", 3, seeded()) >= x - 1e-6).all()
    assert corrupt(x, "contrast", 4, seeded()).std() < 0.3 * x.std()
    assert torch.allclose(corrupt(x, "brightness", 1), (x + 0.1).clamp(max=1))


def test_cover_covers_its_share_and_leaves_the_rest() -> None:
    x = torch.zeros(30, 1, 28, 28)
    for severity in SEVERITIES:
        patch = corrupt(x, "occlusion", severity, seeded())
        band = corrupt(x, "stripe", severity, seeded())
        side, width = (KINDS[kind].levels[severity - 1] for kind in ("occlusion", "stripe"))
        assert patch.max().item() == pytest.approx(0.5)
        assert torch.allclose(patch.mean((1, 2, 3)), torch.tensor(side**2 / 2), atol=2e-3)
        assert torch.allclose(band.mean((1, 2, 3)), torch.tensor(width), atol=2e-3)
    inverted = corrupt(x + 1, "stripe", 5, seeded())
    assert torch.allclose(inverted, 1 - band)


def test_pixels_are_fewer() -> None:
    got = corrupt(photos(1, (28, 28)), "pixelate", 5)[0]
    side = round(28 * KINDS["pixelate"].levels[4])
    assert len(got.permute(1, 2, 0).reshape(-1, 3).unique(dim=0)) <= side**2


def test_jpeg_is_what_a_file_of_that_quality_holds(tmp_path: Path) -> None:
    for x in (photos(), DIGITS.x_test[:4]):
        for severity, quality in zip(SEVERITIES, KINDS["jpeg"].levels, strict=True):
            picture = tv.to_pil_image((x[0] * 255).round().to(torch.uint8))
            picture.save(tmp_path / "x.jpeg", quality=int(quality))
            wanted = tv.pil_to_tensor(Image.open(tmp_path / "x.jpeg")) / 255
            assert torch.allclose(corrupt(x, "jpeg", severity)[0], wanted)


# --- bad input ----------------------------------------------------------------------------------

GOOD = torch.full((2, 1, 16, 16), 0.5)
BAD = [
    ({"x": GOOD.numpy()}, TypeError, "x must be a torch.Tensor, got ndarray"),
    ({"x": GOOD.long()}, TypeError, r"x must be floating point .* use x.float\(\) / 255"),
    ({"x": GOOD[0]}, ValueError, r"shape \(N, C, H, W\).*got \(1, 16, 16\)"),
    ({"x": GOOD.expand(2, 2, 16, 16)}, ValueError, "C = 1 or 3"),
    ({"x": GOOD[..., :15]}, ValueError, "H, W of 16 or more"),
    ({"x": GOOD * 255}, ValueError, "divide by 255"),
    ({"x": GOOD - 1}, ValueError, r"must lie in \[0, 1\], got \[-0.5"),
    ({"x": GOOD * math.nan}, ValueError, "NaN"),
    ({"kind": "rain"}, ValueError, r"kind must be one of \['brightness', .* got 'rain'"),
    ({"kind": 3}, ValueError, "kind must be one of"),
    ({"severity": 0}, ValueError, "1 .* to 5 .* got 0; the clean images are x itself"),
    ({"severity": 6}, ValueError, "severity must be 1"),
    ({"severity": 2.5}, TypeError, "whole number, got 2.5"),
    ({"severity": True}, TypeError, "whole number"),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD)
def test_bad_input_is_named(changes: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        corrupt(**{"x": GOOD, "kind": "fog", "severity": 1} | changes)


# --- the report ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> CorruptionReport:
    net = load_model("net")
    with global_generators_untouched():
        return corruption_report(
            net, DIGITS.x_test[:200], DIGITS.y_test[:200], ["fog", "jpeg"], (1, 5)
        )


def test_report_counts_what_corrupt_makes(report: CorruptionReport) -> None:
    net, x, y = load_model("net"), DIGITS.x_test[:200], DIGITS.y_test[:200]
    for kind, row in report.accuracy.items():
        for severity, outcome in row.items():
            right = net(corrupt(x, kind, severity, seeded())).argmax(1) == y
            assert torch.equal(outcome.correct, right)
    assert torch.equal(report.clean.correct, net(x).argmax(1) == y)
    assert report.accuracy["fog"][5].value < report.accuracy["fog"][1].value


def test_report_does_not_depend_on_what_else_is_measured(report: CorruptionReport) -> None:
    net, x, y = load_model("net"), DIGITS.x_test[:200], DIGITS.y_test[:200]
    alone = corruption_report(net, x, y, ["jpeg"], [5])
    assert alone.accuracy["jpeg"][5] == report.accuracy["jpeg"][5]
    other = corruption_report(net, x, y, ["fog"], [5], seed=1).accuracy["fog"][5]
    assert not torch.equal(other.correct, report.accuracy["fog"][5].correct)


def test_mean_is_over_pairs_and_its_interval_over_images(report: CorruptionReport) -> None:
    rows = [outcome.value for row in report.accuracy.values() for outcome in row.values()]
    assert report.mean.n == 200
    assert report.mean.value == pytest.approx(sum(rows) / 4, abs=0.5 / 200 + 1e-9)
    assert report.of("jpeg").value == pytest.approx(sum(rows[2:]) / 2, abs=0.5 / 200 + 1e-9)
    assert report.worst == "fog"


@settings(max_examples=30)
@given(st.data())
def test_wilson_s_interval_for_images_is_wide_enough_for_their_mean(data: st.DataObject) -> None:
    """The variance of answers averaged per image is at most that of one answer with this mean."""
    answers = data.draw(
        st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=5, max_size=60)
    )
    shares = torch.tensor(answers, dtype=torch.float64).mean(1)
    mean = shares.mean().item()
    assert shares.var(correction=0).item() <= mean * (1 - mean) + 1e-12


def test_report_reads_well(report: CorruptionReport) -> None:
    rows = report.table()
    assert [row["kind"] for row in rows] == ["fog", "jpeg"]
    assert list(rows[0]) == ["kind", "family", "severity 1", "severity 5", "mean"]
    for text in (repr(report), report._repr_html_()):
        assert "fog" in text
        assert str(report.mean) in text
        assert str(report.clean) in text


def test_report_refuses_nothing_to_do_before_it_starts() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the model was called")

    x, y = DIGITS.x_test[:4], DIGITS.y_test[:4]
    for options, words in (
        ({"kinds": []}, "need a kind and a severity"),
        ({"severities": []}, "need a kind and a severity"),
        ({"kinds": ["fog", "rain"]}, "got 'rain'"),
        ({"severities": (1, 0)}, "got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            corruption_report(never, x, y, **options)


def test_a_model_keeps_its_mode_and_a_constant_model_its_accuracy() -> None:
    x, y = DIGITS.x_test[:50], torch.zeros(50, dtype=torch.long)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 2)).train()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([100.0, 0.0]))
    outcome = corruption_report(model, x, y, ["stripe"], (3,))
    assert model.training
    assert outcome.mean == Proportion(50, 50)
    assert not model[1].running_mean.any()


def test_the_table_of_kinds_is_the_list_itself() -> None:
    rows = corruption_table()
    assert [row["kind"] for row in rows] == list(KINDS)
    assert all(row["what happens"] for row in rows)
