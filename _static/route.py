"""Draws the route of the book: one model, seven steps, an audit card that grows.

Run `python _static/route.py` after a change: it writes route-{wide,tall}-{light,dark}.svg beside
itself. The points are made up; every boundary is really fitted to the points in its panel.
"""

import re
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

# Okabe and Ito's colours, which colour-blind readers can tell apart; classes also differ in shape.
THEMES = {
    "light": {
        "text": "#1b2733",
        "line": "#5b6b7a",
        "face": "#ffffff",
        "edge": "#c3ccd5",
        "a": "#0072b2",
        "b": "#b85200",
        "shade_a": "#e3f0f8",
        "shade_b": "#fbeadd",
    },
    "dark": {
        "text": "#e9eef3",
        "line": "#a3b1bf",
        "face": "#1d252e",
        "edge": "#44525f",
        "a": "#62b8e8",
        "b": "#f2a35e",
        "shade_a": "#1c3444",
        "shade_b": "#40301f",
    },
}
STEPS = [  # title, what happens, the line that the audit card gains
    ("Train", "fit the network", "accuracy"),
    ("Clean", "find the wrong label", "label errors"),
    ("Augment", "vary the data", "corruptions"),
    ("Validate", "ask new data", "calibration"),
    ("Attack", "move a point a little", "under attack"),
    ("Repair", "train against it", "after repair"),
    ("Apply", "money, health, roads", "in the field"),
]
EPS = 0.36
rng = np.random.default_rng(8)
CENTRES = rng.uniform(-1.6, 1.6, (40, 2))


def features(x):
    """Bumps around fixed centres, and the two coordinates themselves."""
    bumps = np.exp(-2.2 * ((x[:, None] - CENTRES) ** 2).sum(-1))
    return np.hstack([bumps, 1.5 * x, np.ones((len(x), 1))])


def score(w, x):
    """The fitted function: below zero is a circle, above zero a triangle."""
    return features(x) @ w


def worst(w, x, y):
    """The corner or edge point of each square of radius EPS that is worst for the label."""
    steps = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]) * EPS
    options = x[:, None] + steps
    losses = -y[:, None] * score(w, options.reshape(-1, 2)).reshape(len(x), -1)
    return options[np.arange(len(x)), losses.argmax(1)]


def fit(x, y, penalty=0.02, adversarial=False):
    """Logistic regression on the features by gradient descent."""
    w = np.zeros(len(CENTRES) + 3)
    for _ in range(3000):
        f = features(worst(w, x, y) if adversarial else x)
        w += 0.5 * ((f * (y / (1 + np.exp(y * (f @ w))))[:, None]).mean(0) - penalty * w / 10)
    return w


def cloud(n):
    """Two groups of n points with their labels."""
    blue, orange = rng.normal((-0.8, -0.55), 0.34, (n, 2)), rng.normal((0.98, 0.62), 0.27, (n, 2))
    return np.clip(np.vstack([blue, orange]), -1.45, 1.45), np.repeat([-1.0, 1.0], n)


x, y = cloud(9)
x, y = np.vstack([x, [[-0.04, 0.1]]]), np.append(y, -1)  # the point that will be attacked
wrong = int(np.argmin(((x - (0.85, 0.6)) ** 2).sum(1)))
y_dirty = y.copy()
y_dirty[wrong] *= -1
jitter = np.vstack([x + rng.normal(0, 0.13, x.shape) for _ in range(2)])
x_new, y_new = cloud(7)
augmented = fit(np.vstack([x, jitter]), np.tile(y, 3), 0.3)
MODELS = [fit(x, y_dirty, 0.001), fit(x, y, 0.1), augmented, augmented, augmented]
MODELS.append(fit(x, y, 0.001, adversarial=True))


def points(ax, x, y, c, size=11, hollow=False, **kwargs):
    """Points of both classes, each class in its own shape and colour."""
    for label, marker, colour in ((-1, "o", c["a"]), (1, "^", c["b"])):
        p = x[y == label]
        face = "none" if hollow else colour
        ax.scatter(
            *p.T, s=size, marker=marker, facecolor=face, edgecolor=colour, linewidth=0.9, **kwargs
        )


def icons(ax, c):
    """A bank card, a medical cross and a warning sign."""
    ax.add_patch(
        FancyBboxPatch(
            (-1.25, 0.3), 1.1, 0.75, "round,pad=0,rounding_size=.12", fc=c["shade_a"], ec=c["a"]
        )
    )
    ax.add_patch(Rectangle((-1.25, 0.68), 1.1, 0.17, fc=c["a"], lw=0))
    ax.add_patch(
        Polygon(
            [(0.55, 0.25), (1.35, 0.25), (0.95, 1.1)], fc=c["shade_b"], ec=c["b"], joinstyle="round"
        )
    )
    ax.plot([0.95, 0.95], [0.55, 0.78], color=c["b"], lw=1.6)
    ax.plot([0.95], [0.42], "o", ms=1.6, color=c["b"])
    for w, h in ((0.95, 0.32), (0.32, 0.95)):
        ax.add_patch(Rectangle((-w / 2, -0.75 - h / 2), w, h, fc=c["a"], lw=0))


def panel(ax, step, c):
    """The model at one step of the route."""
    ax.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), xticks=[], yticks=[], aspect="equal")
    ax.set_facecolor(c["face"])
    for spine in ax.spines.values():
        spine.set(color=c["edge"], linewidth=1)
    if step == 6:
        return icons(ax, c)
    grid = np.stack(np.meshgrid(*2 * [np.linspace(-1.6, 1.6, 60)]), -1).reshape(-1, 2)
    z, g = score(MODELS[step], grid).reshape(60, 60), np.linspace(-1.6, 1.6, 60)
    ax.contourf(g, g, z, [-1e9, 0, 1e9], colors=[c["shade_a"], c["shade_b"]])
    ax.contour(g, g, z, [0], colors=[c["line"]], linewidths=1.3)
    if step == 2:
        points(ax, jitter, np.tile(y, 2), c, 5, alpha=0.55)
    if step == 3:
        return points(ax, x_new, y_new, c, 13, hollow=True)
    if step >= 4:
        victim, target = x[-1], worst(MODELS[4], x[-1:], y[-1:])[0]
        points(ax, x[:-1], y[:-1], c, 6, alpha=0.45)
        points(ax, victim[None], y[-1:], c, 20)
        ax.add_patch(Rectangle(victim - EPS, 2 * EPS, 2 * EPS, fill=False, ec=c["text"], lw=1.1))
        ax.add_patch(
            FancyArrowPatch(
                victim,
                target,
                arrowstyle="-|>",
                mutation_scale=7,
                color=c["text"],
                lw=1.1,
                shrinkA=2,
                shrinkB=0,
            )
        )
        return None
    points(ax, x, y_dirty if step == 0 else y, c)
    if step == 1:
        ax.add_patch(Circle(x[wrong], 0.24, fill=False, ec=c["text"], lw=1.3))
    return None


def card(ax, step, c):
    """The audit card: one line per step so far, the newest in colour."""
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
    ax.add_patch(
        FancyBboxPatch(
            (0.04, 0.03),
            0.92,
            0.94,
            "round,pad=0,rounding_size=.08",
            fc=c["face"],
            ec=c["edge"],
            lw=1,
        )
    )
    for row in range(step + 1):
        new, height = row == step, 0.86 - row * 0.125
        ax.plot(
            [0.14, 0.5],
            [height] * 2,
            color=c["b"] if new else c["line"],
            lw=2.4 if new else 1.4,
            solid_capstyle="round",
        )
        ax.plot(
            [0.66, 0.86],
            [height] * 2,
            color=c["b"] if new else c["line"],
            lw=2.4 if new else 1.4,
            solid_capstyle="round",
        )


def wide(c):
    """Seven steps side by side, for a desktop."""
    fig = plt.figure(figsize=(7.7, 2.75))
    for i, (title, _, line) in enumerate(STEPS):
        left = (0.08 + 1.09 * i) / 7.7
        ax = fig.add_axes((left, 1.42 / 2.75, 1.0 / 7.7, 1.0 / 2.75))
        panel(ax, i, c)
        fig.text(
            left, 2.52 / 2.75, f"{i + 1} {title}", color=c["text"], fontsize=10.5, weight="bold"
        )
        card(fig.add_axes((left + 0.16 / 7.7, 0.38 / 2.75, 0.68 / 7.7, 0.86 / 2.75)), i, c)
        fig.text(
            left + 0.5 / 7.7, 0.13 / 2.75, "+ " + line, color=c["text"], fontsize=8.5, ha="center"
        )
    return fig


def tall(c):
    """Seven steps below each other, for a phone."""
    fig = plt.figure(figsize=(3.7, 7.9))
    for i, (title, what, line) in enumerate(STEPS):
        bottom = (7.9 - 1.12 * (i + 1)) / 7.9
        panel(fig.add_axes((0.04 / 3.7, bottom, 1.0 / 3.7, 1.0 / 7.9)), i, c)
        for height, text, style in (
            (0.72, f"{i + 1} {title}", {"fontsize": 12, "weight": "bold"}),
            (0.46, what, {"fontsize": 9.5}),
            (0.18, "+ " + line, {"fontsize": 9.5}),
        ):
            colour = c["b"] if text.startswith("+") else c["text"]
            fig.text(1.18 / 3.7, bottom + height / 7.9, text, color=colour, **style)
        card(fig.add_axes((2.88 / 3.7, bottom + 0.04 / 7.9, 0.74 / 3.7, 0.92 / 7.9)), i, c)
    return fig


if __name__ == "__main__":
    # What the picture says has to be so: the attack works, and after the repair it does not.
    assert (score(MODELS[4], x) * y > 0).all()
    assert score(MODELS[4], worst(MODELS[4], x[-1:], y[-1:])) * y[-1] < 0
    assert (score(MODELS[5], worst(MODELS[5], x, y)) * y > 0).all()
    plt.rcParams.update(
        {"svg.hashsalt": "route", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    )
    for theme, colours in THEMES.items():
        for draw in (wide, tall):
            target = Path(__file__).with_name(f"route-{draw.__name__}-{theme}.svg")
            draw(colours).savefig(
                target, transparent=True, metadata={"Date": None, "Creator": None}
            )
            plt.close()
            # A tenth of a point is enough for the eye and halves the file.
            target.write_text(re.sub(r"(\d\d\.\d)\d+", r"\1", target.read_text()))
