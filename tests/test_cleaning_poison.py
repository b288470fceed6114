"""Detectors of planted samples: what they compute, what order and class can't change, their peers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from generators import global_generators_untouched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelsec.cleaning import entropy, poison
from modelsec.cleaning.entropy import flag_low_entropy, strip
from modelsec.cleaning.poison import (
    Clusters,
    activation_clustering,
    flag_clusters,
    flag_top,
    reclassify,
    spectral_signatures,
    whiten,
)
from modelsec.models import ConvNet, Net
from modelsec.training import features as last_features

few = settings(max_examples=25)
fewer = settings(max_examples=8)  # clustering takes a while
seeds = st.integers(0, 10_000)


def draw(seed: int, n: int = 40, d: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Features and labels of which class 0 has no sample, class 1 one, the others the rest."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=generator) * torch.arange(d, 0, -1)
    y = torch.randint(2, 2 + classes, (n,), generator=generator)
    y[0] = 1
    return features, y


def planted(n: int = 200, m: int = 20, d: int = 8, gap: float = 8.0) -> tuple[Tensor, Tensor]:
    """One class of n normal samples, the last m of which lie elsewhere, all labelled 4."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, d, generator=generator)
    features[-m:, 2] += gap
    return features, torch.full((n,), 4)


# --- features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Net, ConvNet])
def test_features_are_what_the_last_layer_is_given(make: Any) -> None:
    model = make().train()
    x = torch.rand(7, 1, 28, 28)
    found = last_features(model, x, batch_size=3)
    last = [module for module in model if isinstance(module, nn.Linear)][-1]
    assert torch.allclose(last(found), model(x), atol=1e-5)
    assert not found.requires_grad
    assert model.training
    assert not last._forward_pre_hooks
    with pytest.raises(ValueError, match="Linear"):
        last_features(nn.Sequential(nn.Flatten()), x)
    with pytest.raises(ValueError, match="at least one input"):
        last_features(model, x[:0])


def test_no_hook_is_left_when_the_model_fails() -> None:
    model = Net()
    with pytest.raises(RuntimeError):
        last_features(model, torch.rand(2, 1, 5, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- spectral signatures -------------------------------------------------------------------------


def test_spectral_scores_by_hand() -> None:
    """Along (3, 4) / 5 the points lie at -2, -1, 3 times 5; the mean is 0 already."""
    features = torch.tensor([[-6.0, -8.0], [-3.0, -4.0], [9.0, 12.0]]) + torch.tensor([100.0, -7.0])
    scores = spectral_signatures(features, torch.zeros(3, dtype=torch.long))
    assert torch.allclose(scores, torch.tensor([100.0, 25.0, 225.0]).double(), rtol=1e-6)


@few
@given(seed=seeds)
def test_spectral_scores_are_those_of_the_covariance_s_first_eigenvector(seed: int) -> None:
    features, y = draw(seed)
    scores = spectral_signatures(features, y)
    for c in y.unique():
        mine = features[y == c].double()
        centred = mine - mine.mean(0)
        v = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
        assert torch.allclose(scores[y == c], (centred @ v) ** 2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("detector", ["spectral", "clustering ica", "clustering pca"])
@fewer
@given(seed=seeds)
def test_scores_follow_the_samples_into_any_order(detector: str, seed: int) -> None:
    features, y = draw(seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed + 1))

    def score(features: Tensor, y: Tensor) -> Tensor:
        if detector == "spectral":
            return spectral_signatures(features, y)
        return activation_clustering(features, y, reduce=detector[-3:]).scores  # type: ignore[arg-type]

    with global_generators_untouched():
        plain, moved = score(features, y), score(features[order], y[order])
    exact = {"rtol": 0, "atol": 0} if detector != "spectral" else {"rtol": 1e-8, "atol": 1e-9}
    assert torch.allclose(plain[order], moved, **exact)


@fewer
@given(seed=seeds, reduce=st.sampled_from(["ica", "pca"]))
def test_classes_do_not_know_of_each_other(seed: int, reduce: Any) -> None:
    features, y = draw(seed)
    clusters = activation_clustering(features, y, reduce=reduce)
    tau = spectral_signatures(features, y)
    for c in y.unique():
        rows = y == c
        alone = activation_clustering(features[rows], y[rows], reduce=reduce)
        assert torch.equal(alone.scores, clusters.scores[rows])
        assert torch.equal(alone.smaller, clusters.smaller[rows])
        assert alone.share[int(c)] == clusters.share[int(c)]
        assert torch.equal(spectral_signatures(features[rows], y[rows]), tau[rows])


@few
@given(seed=seeds, shift=st.floats(-50, 50), factor=st.sampled_from([0.25, 4.0]))
def test_spectral_scores_are_centred_and_scale_as_a_square(
    seed: int, shift: float, factor: float
) -> None:
    features, y = draw(seed)
    tau = spectral_signatures(features.double(), y)
    moved = spectral_signatures(factor * features.double() + shift, y)
    assert torch.allclose(moved, factor**2 * tau, rtol=1e-6, atol=1e-6)


def test_a_class_of_one_sample_and_one_of_equal_samples() -> None:
    features = torch.cat([torch.rand(1, 5), torch.ones(6, 5)])
    y = torch.tensor([3] + [9] * 6)
    assert (spectral_signatures(features, y) == 0).all()
    clusters = activation_clustering(features, y)
    assert (clusters.scores == 0).all()
    assert not clusters.smaller.any()
    assert clusters.share == {3: 0.0, 9: 0.0}
    assert not flag_top(torch.zeros(7), y, eps=0.3).any()  # nobody is more suspicious than another
    assert not flag_clusters(clusters, y).any()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_class_of_few_samples(n: int) -> None:
    features = torch.randn(n, 5, generator=torch.Generator().manual_seed(n))
    y = torch.zeros(n, dtype=torch.long)
    for reduce in ("ica", "pca"):
        clusters = activation_clustering(features, y, reduce=reduce)  # type: ignore[arg-type]
        assert 1 <= int(clusters.smaller.sum()) <= n / 2
        assert clusters.scores.isfinite().all()
    assert spectral_signatures(features, y).isfinite().all()


# --- whitening -----------------------------------------------------------------------------------


@few
@given(seed=seeds)
def test_whitened_clean_features_vary_alike_in_every_direction(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # directions at random, but none so quiet that the ridge would count
    turned = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    spread = torch.tensor([[0.1], [0.5], [1.0], [5.0]])
    clean = torch.randn(60, 4, generator=generator) @ (spread * turned) + 5
    y = torch.randint(2, (60,), generator=generator)
    white = whiten(clean, y, clean, y, ridge=1e-9)
    for c in y.unique():
        mine = white[y == c]
        assert torch.allclose(mine.mean(0), torch.zeros(4).double(), atol=1e-6)
        assert torch.allclose(mine.T @ mine / len(mine), torch.eye(4).double(), atol=1e-3)
    order = torch.randperm(60, generator=generator)
    moved = whiten(clean[order], y[order], clean, y, ridge=1e-9)
    assert torch.allclose(moved, white[order])


def test_whitening_by_hand() -> None:
    """Clean variances 9 and 1 about (2, 0), plus a ridge of 0.1 times their mean, 5."""
    clean = torch.tensor([[5.0, 1.0], [-1.0, 1.0], [5.0, -1.0], [-1.0, -1.0]])
    labels = torch.zeros(4, dtype=torch.long)
    white = whiten(torch.tensor([[3.0, 4.0]]), labels[:1], clean, labels, ridge=0.1)
    assert torch.allclose(white, torch.tensor([[1 / 9.5**0.5, 4 / 1.5**0.5]]).double(), rtol=1e-6)


def test_whitening_brings_out_what_clean_variance_hides() -> None:
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    size = torch.tensor([20.0, 20, 20, 20, 1, 1])
    features, clean = (torch.randn(n, 6, generator=generator) * size for n in (300, 20))
    features[:30, 5] += 9
    y, y_clean = torch.zeros(300, dtype=torch.long), torch.zeros(20, dtype=torch.long)
    tau = spectral_signatures(features @ rotation, y)
    white = whiten(features @ rotation, y, clean @ rotation, y_clean, ridge=1e-3)
    assert not tau[:30].min() > tau[30:].max()
    assert int(flag_top(tau, y, eps=0.1, factor=1)[:30].sum()) < 15
    assert int(flag_top(spectral_signatures(white, y), y, eps=0.1, factor=1)[:30].sum()) >= 29


def test_whitening_needs_clean_samples_of_each_class() -> None:
    features, y = torch.rand(4, 3), torch.tensor([0, 0, 1, 1])
    for clean, y_clean, words in (
        (torch.rand(3, 3), torch.tensor([0, 0, 1]), "class 1 needs two different clean samples"),
        (torch.rand(2, 3), torch.tensor([0, 0]), "class 1 needs"),
        (torch.ones(4, 3), y, "class 0 needs"),
        (torch.rand(4, 2), y, "as many features in clean"),
    ):
        with pytest.raises(ValueError, match=words):
            whiten(features, y, clean, y_clean)
    with pytest.raises(ValueError, match="ridge > 0"):
        whiten(features, y, features, y, ridge=0)


# --- flag_top ------------------------------------------------------------------------------------


@few
@given(seed=seeds, eps=st.floats(0, 1), factor=st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_the_top_share_of_each_class_is_flagged(seed: int, eps: float, factor: float) -> None:
    _, y = draw(seed)
    scores = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).double()
    flagged = flag_top(scores, y, eps=eps, factor=factor)
    for c in y.unique():
        mine, marked = scores[y == c], flagged[y == c]
        assert int(marked.sum()) == min(int(factor * eps * len(mine)), len(mine) - 1)
        if marked.any():
            assert mine[marked].min() > mine[~marked].max()


def test_ties_with_a_sample_that_stays_stay() -> None:
    y = torch.zeros(8, dtype=torch.long)
    scores = torch.tensor([5.0, 3, 3, 3, 1, 1, 1, 1])
    assert flag_top(scores, y, eps=0.25, factor=1).tolist() == [True] + [False] * 7
    assert flag_top(scores, y, eps=0.5, factor=1).tolist() == [True] * 4 + [False] * 4


# --- clusters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["ica", "pca"])
def test_a_planted_cluster_is_found(reduce: Any) -> None:
    features, y = planted()
    clusters = activation_clustering(features, y, reduce=reduce)
    truth = torch.arange(200) >= 180
    assert torch.equal(clusters.smaller, truth)
    assert torch.equal(clusters.scores > 0, truth)
    assert clusters.share == {4: 0.1}
    assert torch.equal(flag_clusters(clusters, y, min_silhouette=0.0), truth)
    assert not flag_clusters(clusters, y, max_share=0.1).any()
    assert not flag_clusters(clusters, y, min_silhouette=0.99).any()
    assert torch.equal(flag_top(spectral_signatures(features, y), y, eps=0.1, factor=1), truth)


def test_independent_components_see_what_variance_hides() -> None:
    """Poison in a direction of little variance, beside directions of much: ICA finds it, PCA not."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(400, 6, generator=generator)
    truth = torch.arange(400) < 40
    features[truth, 5] += 8
    features[:, :4] *= 20
    y = torch.zeros(400, dtype=torch.long)
    ica, pca = (activation_clustering(features, y, reduce=r) for r in ("ica", "pca"))  # type: ignore[arg-type]
    assert torch.equal(ica.smaller, truth)
    assert int((pca.smaller & truth).sum()) < 35
    assert int((pca.smaller & ~truth).sum()) > 50


def test_flag_clusters_takes_small_and_distinct_ones_only() -> None:
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    smaller = torch.tensor([True, False] * 3)
    clusters = Clusters(
        torch.zeros(6), smaller, {0: 0.2, 1: 0.5, 2: 0.2}, {0: 0.3, 1: 0.3, 2: 0.05}
    )
    assert flag_clusters(clusters, y).tolist() == [True] + [False] * 5


# --- reclassification ----------------------------------------------------------------------------


def says(answers: Tensor) -> Any:
    """A model whose input is its answer's index."""
    return lambda x: nn.functional.one_hot(answers[x[:, 0].long()], 5).float()


def test_suspects_are_flagged_where_another_label_wins() -> None:
    # class 0: own labels win; 1: another one does; 2: a draw; 3: not suspects
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    answers = torch.tensor([0, 0, 4, 4, 4, 1, 2, 0, 0, 0])
    suspects = torch.tensor([True] * 8 + [False] * 2)
    x = torch.arange(10.0)[:, None]
    flagged = reclassify(says(answers), x, y, suspects)
    assert flagged.tolist() == [False] * 3 + [True] * 3 + [True] * 2 + [False] * 2
    lenient = reclassify(says(answers), x, y, suspects, threshold=0.5)
    assert lenient.tolist() == [False] * 3 + [True] * 3 + [False] * 4
    spread = torch.tensor([0, 1, 2, 4, 4, 1, 2, 0, 0, 0])  # l = 1, p = 1: another *one*
    assert reclassify(says(spread), x, y, suspects)[:3].all()
    many = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool)
    two_own = torch.tensor([0, 0, 1, 2, 3])  # l = 2, p = 1, though most get another label
    assert not reclassify(says(two_own), x[:5], *many).any()
    assert not reclassify(says(y), x, y, suspects).any()
    assert not reclassify(says(answers), x, y, torch.zeros_like(suspects)).any()
    with pytest.raises(ValueError, match="must have shape"):
        reclassify(says(answers), x, y, suspects[:3])
    with pytest.raises(ValueError, match="bool"):
        reclassify(says(answers), x, y, suspects.long())


# --- STRIP ---------------------------------------------------------------------------------------


class Brightness(nn.Module):
    """Class 1 the surer, the brighter the mean; a white corner overrules everything."""

    def forward(self, x: Tensor) -> Tensor:
        z = 8 * (x.flatten(1).mean(1) - 0.5)
        z = torch.where(x[:, 0, -1, -1] > 0.9, 30.0, z)
        return torch.stack([torch.zeros_like(z), z], 1)


def overlays(n: int = 30) -> Tensor:
    x = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    x[..., -1, -1] = 0
    return x


def test_entropy_by_hand() -> None:
    x, over = torch.zeros(1, 1, 6, 6), torch.full((1, 1, 6, 6), 0.4)
    p = 1 / (1 + math.exp(-8 * (0.4 - 0.5)))
    by_hand = p * math.log2(p) + (1 - p) * math.log2(1 - p)
    assert float(strip(Brightness(), x, over, n=3)) == pytest.approx(by_hand, rel=1e-5)
    half = 1 / (1 + math.exp(-8 * (0.2 - 0.5)))
    by_hand = half * math.log2(half) + (1 - half) * math.log2(1 - half)
    got = strip(Brightness(), x, over, n=1, weights=(0.5, 0.5))
    assert float(got) == pytest.approx(by_hand, rel=1e-5)
    bright, over = torch.full((1, 1, 6, 6), 0.8), over.clone()
    bright[..., -1, -1] = over[..., -1, -1] = 0
    p = 1 / (1 + math.exp(-8 * (35 / 36 - 0.5)))  # 0.8 + 0.4 is white, not more
    by_hand = p * math.log2(p) + (1 - p) * math.log2(1 - p)
    assert float(strip(Brightness(), bright, over, n=1)) == pytest.approx(by_hand, rel=1e-4)
    even = strip(lambda images: torch.zeros(len(images), 4), x, over)
    assert float(even) == pytest.approx(-2)  # four answers, equally likely: two bits
    sure = strip(lambda images: torch.tensor([[1e4, 0.0]]).expand(len(images), 2), x, over)
    assert float(sure) == 0


@few
@given(seed=seeds)
def test_strip_scores_follow_the_samples_and_do_not_depend_on_the_batch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(11, 1, 6, 6, generator=generator)
    order = torch.randperm(11, generator=generator)

    def score(images: Tensor, batch_size: int = 500) -> Tensor:
        own = torch.Generator().manual_seed(seed)
        return strip(Brightness(), images, overlays(), generator=own, batch_size=batch_size)

    with global_generators_untouched():
        plain = score(x)
        assert torch.allclose(score(x[order]), plain[order], rtol=1e-6)
        assert torch.allclose(score(x, 4), plain, rtol=1e-6)
        assert torch.equal(score(x), plain)
    assert plain.max() <= 0
    assert plain.min() >= -1


def test_a_trigger_that_survives_is_seen_and_one_that_fades_is_not() -> None:
    clean = overlays(60)[30:] * 0.6
    marked = clean.clone()
    marked[..., -1, -1] = 1
    options = {"n": 10, "generator": torch.Generator().manual_seed(0)}
    scores = strip(Brightness(), torch.cat([clean, marked]), overlays(), **options)
    assert scores[30:].min() > scores[:30].max()
    flagged = flag_low_entropy(scores, scores[:30], rejected=0.0)
    assert flagged.tolist() == [False] * 30 + [True] * 30
    faded = strip(Brightness(), torch.cat([clean, marked]), overlays(), weights=(0.5, 0.5))
    assert abs(float(faded[30:].mean() - faded[:30].mean())) < 0.05


@few
@given(seed=seeds, rejected=st.floats(0, 1))
def test_no_more_clean_samples_are_rejected_than_chosen(seed: int, rejected: float) -> None:
    clean = torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    share = flag_low_entropy(clean, clean, rejected=rejected).double().mean()
    assert rejected - 0.05 <= share <= rejected + 1e-9


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [spectral_signatures, activation_clustering, lambda f, y: flag_top(f[:, 0], y, eps=0.1)],
)
def test_bad_features_and_labels_are_named(function: Any) -> None:
    features, y = torch.rand(4, 3), torch.zeros(4, dtype=torch.long)
    for bad in (
        (features, y.float(), TypeError, r"y.long\(\)"),
        (features, y[:3], ValueError, "labels, got shapes"),
        (features.long(), y, TypeError, "floating-point"),
        (features * torch.nan, y, ValueError, "finite"),
    ):
        with pytest.raises(bad[2], match=bad[3]):
            function(*bad[:2])


def test_bad_options_are_named() -> None:
    features, y, x = torch.rand(4, 3), torch.zeros(4, dtype=torch.long), torch.rand(2, 1, 6, 6)
    for call, words in (
        (lambda: flag_top(features[:, 0], y, eps=1.5), "eps in"),
        (lambda: flag_top(features[:, 0], y, eps=0.1, factor=-1), "factor >= 0"),
        (lambda: activation_clustering(features, y, components=0), "components >= 1"),
        (lambda: activation_clustering(features, y, reduce="tsne"), "reduce"),  # type: ignore[arg-type]
        (lambda: strip(Brightness(), 255 * x, x), r"x must lie in \[0, 1\]"),
        (lambda: strip(Brightness(), x, x - 1), r"overlays must lie in \[0, 1\]"),
        (lambda: strip(Brightness(), x, x[..., 1:]), "overlay of shape"),
        (lambda: strip(Brightness(), x, x[:0]), "at least one overlay"),
        (lambda: strip(Brightness(), x, x, n=0), "n >= 1"),
        (lambda: flag_low_entropy(x[:, 0, 0, 0], x[:0, 0, 0, 0]), "clean scores"),
        (lambda: flag_low_entropy(x[:, 0, 0, 0], x[:, 0, 0, 0], rejected=2), "rejected in"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_no_samples_no_scores() -> None:
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    assert len(spectral_signatures(*nothing)) == 0
    assert len(activation_clustering(*nothing).scores) == 0
    assert len(flag_top(torch.zeros(0), nothing[1], eps=0.1)) == 0
    assert len(strip(Brightness(), torch.zeros(0, 1, 6, 6), overlays())) == 0


def test_everything_public_is_exported() -> None:
    from modelsec import cleaning

    for module in (poison, entropy):
        for name in module.__all__:
            assert getattr(cleaning, name) is getattr(module, name)


# --- another library -----------------------------------------------------------------------------


def real_features() -> tuple[Tensor, Tensor]:
    """What the book's network computes of 400 digits, 100 of each of four classes."""
    from modelsec.data import mnist
    from modelsec.zoo import load_model

    digits = mnist()
    keep = digits.y_train < 4
    x, y = digits.x_train[keep][:400], digits.y_train[keep][:400]
    return last_features(load_model("convnet"), x), y


@pytest.mark.peers
def test_art_scores_centred_features_as_we_do() -> None:
    """The Adversarial Robustness Toolbox centres the features to find v, and projects them as they are.

    On features that are centred already the two agree; on others its scores are |R(x) . v|, whose order can be
    ours or the opposite, depending on where the origin lies.
    """
    from art.defences.detector.poison import SpectralSignatureDefense

    theirs = SpectralSignatureDefense.spectral_signature_scores
    features, y = real_features()
    tau = spectral_signatures(features, y)
    for c in y.unique():
        mine = features[y == c].double().numpy()
        centred = mine - mine.mean(0)
        assert theirs(centred)[:, 0] ** 2 == pytest.approx(tau[y == c].numpy(), rel=1e-5, abs=1e-6)
        assert theirs(mine)[:, 0] ** 2 != pytest.approx(tau[y == c].numpy(), rel=0.1)
    far, label = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)).double(), y[:1]
    far[:10, 0] -= 20  # ten outliers, nearer to the origin than all the others
    far[:, 0] += 50
    ours = spectral_signatures(far, label.expand(100))
    assert ours[:10].min() > ours[10:].max()
    assert theirs(far.numpy())[:10].max() < theirs(far.numpy())[10:].min()


@pytest.mark.peers
@pytest.mark.parametrize(("share", "all_equal"), [(0.1, True), (0.7, False)])
def test_art_rejects_everything_where_scores_tie_or_too_much_is_expected(
    share: float, all_equal: bool
) -> None:
    """Both are left of a fault reported as issue 1188 of the library; we flag none, or not the last."""
    from art.defences.detector.poison import SpectralSignatureDefense
    from art.estimators.classification import PyTorchClassifier

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.mul_(0 if all_equal else 1)
    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 2
    peer = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 2)
    defence = SpectralSignatureDefense(peer, x.numpy(), y.numpy(), expected_pp_poison=share)
    assert not any(defence.detect_poison()[1])
    scores = spectral_signatures(model(x), y)
    kept = ~flag_top(scores, y, eps=share)
    assert int(kept.sum()) == (30 if all_equal else 2)


@pytest.mark.peers
def test_art_cuts_and_judges_clusters_as_we_do() -> None:
    """By relative size, where each class has a small cluster: without one the library raises; and its rule by
    silhouettes calls the suspicious cluster clean and leaves the rest undefined.
    """
    from art.defences.detector.poison.activation_defence import cluster_activations
    from art.defences.detector.poison.clustering_analyzer import ClusteringAnalyzer

    features, y = real_features()
    generator = torch.Generator().manual_seed(0)
    for c, n in enumerate((5, 20, 30, 34)):  # in each class a group of its own
        noise = torch.randn(n, features.shape[1], generator=generator)
        features[(y == c).nonzero()[:n, 0]] += 3 * features.std() * (1 + 0.1 * noise)
    ours = activation_clustering(features, y, reduce="pca")
    with np_state_kept():
        np.random.seed(0)  # noqa: NPY002  (the library draws from the global generator)
        split = [features[y == c].numpy() for c in range(4)]
        cut, _ = cluster_activations(split, nb_clusters=2, nb_dims=10, reduce="PCA")
        clean, suspicious, _ = ClusteringAnalyzer().analyze_by_relative_size(cut)
    flagged = flag_clusters(ours, y, min_silhouette=-1)
    for c in range(4):
        theirs = cut[c] == np.argmin(np.bincount(cut[c]))
        assert theirs.tolist() == ours.smaller[y == c].tolist()
        assert flagged[y == c].tolist() == [not value for value in clean[c]]
        assert suspicious[c].any()
        assert int(flagged[y == c].sum()) == (5, 20, 30, 34)[c]


@contextmanager
def np_state_kept() -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


# --- the record ----------------------------------------------------------------------------------


def test_the_record_holds_every_rate_and_seed() -> None:
    from modelsec.zoo.results import load_record
    from modelsec.zoo.studies.poison import RATES

    record = load_record("cleaning_poison")
    for kind, rates in RATES.items():
        assert list(record["result"][kind]) == [str(rate) for rate in sorted(rates)]
        for rate, runs in record["result"][kind].items():
            assert len(runs) == len(record["seeds"]) == 5
            assert len({run["target"] for run in runs}) == 5
            for run in runs:
                for name in ("spectral", "whitened", "clustering", "strip"):
                    found = run[name]["found"] * float(rate) * 4000
                    assert found == pytest.approx(round(found), abs=1e-6)  # a count of images
                    values = [run[name][key] for key in ("auroc", "found", "lost")]
                    values += run[name]["after"].values()
                    assert all(0 <= value <= 1 for value in values)
                assert run["clustering"]["found"] <= run["clustering"]["cut"]
