import pytest
import torch

from sft_lightning.losses.reconstruction import reconstruction_loss
from sft_lightning.networks.vision.corruption import add_noise, hide_patches


def test_reconstruction_is_the_mean_over_pixels_and_batch() -> None:
    drawn, x = torch.rand(3, 2, 5, 4), torch.rand(3, 2, 5, 4)
    assert float(reconstruction_loss(drawn, x)) == pytest.approx(float(((drawn - x) ** 2).sum() / (3 * 2 * 5 * 4)))


def test_noise_has_the_given_deviation_and_stays_between_0_and_1() -> None:
    torch.manual_seed(0)
    gray = torch.full((10, 1, 100, 100), 0.5)
    assert float((add_noise(gray, 0.1) - gray).std()) == pytest.approx(0.1, rel=0.02)
    noisy = add_noise(gray, 3.0)
    assert (float(noisy.min()), float(noisy.max())) == (0.0, 1.0)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (29, 37), (3, 3)])
def test_hidden_patches_are_complete_and_shared_by_channels(height: int, width: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(50, 3, height, width) + 0.1
    hidden = hide_patches(x, 0.4, 4)
    assert hidden.shape == x.shape
    zero = hidden == 0
    assert torch.equal(hidden[~zero], x[~zero])
    assert (zero == zero[:, :1]).all()
    for top in range(0, height, 4):
        for left in range(0, width, 4):
            patch = zero[:, 0, top : top + 4, left : left + 4].flatten(1)
            assert (patch.all(1) | ~patch.any(1)).all()
    assert float(zero.float().mean()) == pytest.approx(0.4, abs=0.15)


def test_share_of_0_hides_nothing() -> None:
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(hide_patches(x, 0.0, 4), x)
