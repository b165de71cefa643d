import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.functional import adjust_saturation

from trl.data.augment import augment, cropped, flipped, saturated


def batch(n=6, c=3, h=5, w=7, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.data())
def test_crop_against_a_loop(n, c, h, w, padding, data):
    x = batch(n, c, h, w)
    offsets = st.lists(st.integers(0, 2 * padding), min_size=n, max_size=n)
    top, left = data.draw(offsets), data.draw(offsets)
    expected = torch.zeros_like(x)
    for i in range(n):
        for row in range(h):
            for column in range(w):
                from_row, from_column = row + top[i] - padding, column + left[i] - padding
                if 0 <= from_row < h and 0 <= from_column < w:
                    expected[i, :, row, column] = x[i, :, from_row, from_column]
    assert torch.equal(cropped(x, padding, torch.tensor(top), torch.tensor(left)), expected)


def test_flip_against_a_loop():
    x, mirror = batch(), torch.tensor([True, False, False, True, True, False])
    expected = torch.stack([image.flip(-1) if m else image for image, m in zip(x, mirror, strict=True)])
    assert torch.equal(flipped(x, mirror), expected)
    assert not torch.equal(expected, x)


def test_saturation_against_torchvision():
    x, factor = batch(), torch.tensor([0.0, 0.3, 0.9, 1.0, 1.6, 3.0])
    expected = torch.stack([adjust_saturation(image, f.item()) for image, f in zip(x, factor, strict=True)])
    torch.testing.assert_close(saturated(x, factor), expected, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 0.5, 1 / 255, 254 / 255]), min_size=48, max_size=48),
    st.integers(0, 5),
    st.booleans(),
    st.floats(0, 4),
    st.integers(0, 2**32),
)
def test_images_stay_in_the_unit_box(values, crop, flip, saturation, seed):
    x = torch.tensor(values).view(4, 3, 2, 2)
    before = x.clone()
    torch.manual_seed(seed)
    changed = augment(x, crop, flip, saturation)
    assert changed.shape == x.shape
    assert changed.dtype == x.dtype
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(x, before)


def test_nothing_asked_nothing_changed():
    x = batch()
    state = torch.get_rng_state()
    assert torch.equal(augment(x, 0, False, 0.0), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_crops_of_an_image_are_drawn_equally_often():
    torch.manual_seed(0)
    x = torch.zeros(9000, 1, 3, 3)
    x[:, :, 1, 1] = 1  # its new place tells the offsets
    places = augment(x, 1, False, 0.0).sum((0, 1))
    assert places.sum() == 9000
    assert (places / 9000 - 1 / 9).abs().max() < 0.02  # 6 standard deviations


def test_half_of_the_images_are_mirrored():
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0]).expand(10_000, 1, 1, 2)
    mirrored = augment(x, 0, True, 0.0)[:, 0, 0, 0]
    assert 0.47 < mirrored.mean() < 0.53


def test_saturation_factors_fill_their_range():
    torch.manual_seed(0)
    colour = torch.tensor([0.5, 0.45, 0.4]).view(1, 3, 1, 1)  # pale enough that nothing is clipped
    changed = augment(colour.expand(10_000, -1, -1, -1), 0, False, 0.5)
    grey = saturated(colour, torch.zeros(1))
    factors = ((changed - grey) / (colour - grey))[:, 0, 0, 0]
    assert 0.499 < factors.min() < 0.51
    assert 1.49 < factors.max() < 1.501
    assert 0.98 < factors.mean() < 1.02
