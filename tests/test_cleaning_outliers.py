"""Outliers and duplicates: distances that are right, copies that are found, originals left alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modelsec.cleaning.duplicates import exact_duplicates, near_duplicates, sample_hash
from modelsec.cleaning.outliers import knn_distance, mahalanobis


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- distances ------------------------------------------------------------------------------------


@given(n=st.integers(2, 30), k=st.integers(1, 5), batch=st.integers(1, 40), seed=st.integers(0, 99))
def test_knn_distance_is_that_of_scikit_learn(n, k, batch, seed) -> None:
    from sklearn.neighbors import NearestNeighbors

    x = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    other = torch.randn(n + 5, 3, generator=seeded(seed + 1), dtype=torch.float64)
    theirs = NearestNeighbors(n_neighbors=k).fit(other.numpy())
    wanted = torch.from_numpy(theirs.kneighbors(x.numpy())[0][:, -1])
    assert torch.allclose(knn_distance(x, other, k=k, batch_size=batch), wanted, atol=1e-6)
    if k < n:  # of itself: kneighbors() without an argument leaves each sample's self out
        within = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors()[0][:, -1]
        found = knn_distance(x, k=k, batch_size=batch)
        assert torch.allclose(found, torch.from_numpy(within), atol=1e-6)


def test_an_outlier_twice_hides_from_its_first_neighbour_and_not_from_its_second() -> None:
    x = torch.cat([torch.randn(50, 2, generator=seeded()), torch.full((2, 2), 20.0)])
    assert float(knn_distance(x, k=1)[-1]) == 0
    assert int(knn_distance(x, k=2).argmax()) >= 50


def test_knn_distance_takes_images_and_an_empty_batch() -> None:
    images = torch.rand(6, 1, 4, 4, generator=seeded())
    assert torch.equal(knn_distance(images, k=2), knn_distance(images.flatten(1), k=2))
    assert knn_distance(images[:0], images, k=2).shape == (0,)


@pytest.mark.parametrize("k", [0, 6])
def test_too_many_neighbours_are_refused(k) -> None:
    with pytest.raises(ValueError, match="k must be from 1 to 5"):
        knn_distance(torch.rand(6, 2), k=k)
    with pytest.raises(ValueError, match="differ in shape"):
        knn_distance(torch.rand(6, 2), torch.rand(6, 3), k=1)


def test_mahalanobis_with_many_samples_is_the_textbook_s() -> None:
    y = torch.arange(2).repeat(5000)
    mixing = torch.tensor([[2.0, 0.5], [0.0, 0.3]], dtype=torch.float64)
    x = torch.randn(10_000, 2, generator=seeded(), dtype=torch.float64) @ mixing
    x += 5 * y[:, None]
    found = mahalanobis(x[:50], y[:50], x, y)
    means = torch.stack([x[y == k].mean(0) for k in (0, 1)])
    rest = x - means[y]
    precision = torch.linalg.inv(rest.T @ rest / len(x))
    wanted = torch.stack([(r @ precision @ r).sqrt() for r in rest[:50]])
    assert torch.allclose(found, wanted, rtol=0.02)  # the shrinkage is small here


def test_mahalanobis_survives_more_dimensions_than_samples_and_asks_for_the_given_label() -> None:
    y = torch.arange(2).repeat(10)
    x = torch.randn(20, 50, generator=seeded()) + 4 * y[:, None]
    right, wrong = mahalanobis(x, y, x, y), mahalanobis(x, 1 - y, x, y)
    assert bool(torch.isfinite(right).all())
    assert float(wrong.min()) > float(right.max())
    assert right.dtype == x.dtype


def test_bad_input_to_mahalanobis_is_named() -> None:
    x, y = torch.rand(6, 2), torch.arange(2).repeat(3)
    with pytest.raises(ValueError, match="needs a reference sample"):
        mahalanobis(x, y + 1, x, y)
    with pytest.raises(ValueError, match=r"need features \(N, D\)"):
        mahalanobis(x, y, torch.rand(6, 3), y)
    with pytest.raises(ValueError, match=r"need features \(N, D\)"):
        mahalanobis(x, y[:5], x, y)


# --- duplicates -----------------------------------------------------------------------------------


def blobs(n: int, seed: int = 0, size: int = 10) -> Tensor:
    """Random images with a black border, so that a shift loses nothing."""
    x = torch.zeros(n, 1, size, size)
    x[:, :, 2:-2, 2:-2] = torch.rand(n, 1, size - 4, size - 4, generator=seeded(seed))
    return x * (x > 0.6)


def pairs(found) -> set[tuple[int, int]]:
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@given(seed=st.integers(0, 999), n=st.integers(2, 20), copies=st.integers(0, 6))
def test_exact_copies_are_found_and_nothing_else(seed, n, copies) -> None:
    x = blobs(n, seed)
    picked = torch.randint(n, (copies,), generator=seeded(seed))
    found = exact_duplicates(torch.cat([x, x[picked]]))
    expected = {(int(p), n + i) for i, p in enumerate(picked)}
    assert pairs(found) == expected
    across = exact_duplicates(x[picked], x)
    assert pairs(across) == {(i, int(p)) for i, p in enumerate(picked)}


def test_one_changed_pixel_is_no_exact_copy_but_a_near_one() -> None:
    x = blobs(5)
    changed = x.clone()
    changed[3, 0, 5, 5] += 1e-3
    assert pairs(exact_duplicates(changed, x)) == {(i, i) for i in range(5) if i != 3}
    assert pairs(near_duplicates(changed, x)) == {(i, i) for i in range(5)}


@given(
    seed=st.integers(0, 999),
    down=st.integers(-1, 1),
    across=st.integers(-1, 1),
    light=st.floats(0.3, 1),
)
def test_a_shifted_paler_copy_is_found_on_either_side(seed, down, across, light) -> None:
    x = blobs(8, seed)
    copy = light * torch.roll(x[2:3], (down, across), (2, 3)) + 0.05
    both = torch.cat([x, copy])
    for images in (both, both.flip(0)):
        found = near_duplicates(images, threshold=0.99, batch_size=3)
        place = (2, 8) if images is both else (0, 6)
        assert pairs(found) == {place}
        assert float(found.similarity[0]) == pytest.approx(1, abs=1e-5)
    assert pairs(near_duplicates(copy, x, threshold=0.99)) == {(0, 2)}


def test_a_shift_farther_than_allowed_is_not_found() -> None:
    x = blobs(8, size=12)
    copy = torch.roll(x[2:3], (2, 0), (2, 3))
    assert pairs(near_duplicates(copy, x, threshold=0.99)) == set()
    assert pairs(near_duplicates(copy, x, threshold=0.99, shift=2)) == {(0, 2)}
    assert (
        pairs(near_duplicates(torch.roll(copy, (-1, 0), (2, 3)), x, threshold=0.99, shift=0))
        == set()
    )


def test_pairs_come_most_similar_first_and_blank_images_are_like_nothing() -> None:
    x = blobs(6)
    noisy = (x + 0.1 * torch.rand(x.shape, generator=seeded(1))).clamp(0, 1)
    found = near_duplicates(torch.cat([x, noisy]), threshold=0.5)
    assert bool((found.similarity.diff() <= 0).all())
    assert bool((found.first < found.second).all())
    assert len(pairs(found)) == len(found.first)
    blank = torch.zeros(3, 1, 10, 10)
    assert len(near_duplicates(blank).first) == 0
    assert len(exact_duplicates(blank).first) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "0 < threshold <= 1"),
        ({"threshold": 1.1}, "0 < threshold <= 1"),
        ({"shift": -1}, "0 <= shift"),
        ({"shift": 5}, "half an image"),
        ({"other": torch.rand(2, 1, 9, 9)}, "of one size"),
    ],
)
def test_bad_input_to_the_search_for_copies_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        near_duplicates(torch.rand(2, 1, 10, 10), **options)


def test_no_images_have_no_copies() -> None:
    none = torch.zeros(0, 1, 10, 10)
    assert len(near_duplicates(none).first) == len(exact_duplicates(none).first) == 0
    assert len(near_duplicates(none, blobs(3)).first) == 0


@given(seed=st.integers(0, 999))
def test_a_hash_sees_bytes_shape_and_type_but_not_memory_layout(seed) -> None:
    x = torch.rand(3, 4, generator=seeded(seed))
    assert sample_hash(x) == sample_hash(x.T.contiguous().T)
    others = [x.view(4, 3), x.double(), x.clone().fill_(x[0, 0]), x.flip(0)]
    changed = x.clone()
    changed[1, 1] = torch.nextafter(changed[1, 1], torch.tensor(2.0))
    assert len({sample_hash(t) for t in [x, changed, *others]}) == 6
