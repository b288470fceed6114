"""Input steps beside another library's: equal outputs.

ART cuts pixels to bytes before it compresses, where ours rounds. So the images for JPEG lie a little above a grey
level, which both then find. All else is compared on the digits, and on colour images that are drawn at random.
"""

import pytest
import torch
from agreement_table import Agreement, record

from modelsec.data import mnist
from modelsec.repair import purification as p

pytestmark = pytest.mark.peers


def test_the_steps_do_what_art_s_preprocessors_do() -> None:
    from art.defences import preprocessor as peer

    x = mnist().x_test[:50]
    colour = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ours = {
        "bit_depth": (p.bit_depth(3), peer.FeatureSqueezing((0.0, 1.0), bit_depth=3)),
        "jpeg": (p.jpeg(50), peer.JpegCompression((0.0, 1.0), quality=50, channels_first=True)),
        "median": (p.median(2), peer.SpatialSmoothing(2, channels_first=True, clip_values=(0.0, 1.0))),
        "thermometer": (p.thermometer(10), peer.ThermometerEncoding((0.0, 1.0), 10, channels_first=True)),
    }  # fmt: skip
    rows = []
    for name, (step, theirs) in ours.items():
        worst = 0.0
        for images in (x,) if name == "thermometer" else (x, colour):
            # ART cuts to bytes where we round: halfway above a grey level both find that level
            given = ((images * 254).round() + 0.25) / 255 if name == "jpeg" else images
            other = torch.from_numpy(theirs(given.numpy().copy())[0])
            worst = max(worst, float((step(given) - other).abs().max()))
        assert worst <= 1e-6, name
        rows.append(
            Agreement(
                "adversarial-robustness-toolbox",
                name,
                "",
                "images that come out",
                50 if name == "thermometer" else 58,
                f"largest difference {worst:.0e}",
            )
        )
    record("purification", rows)
