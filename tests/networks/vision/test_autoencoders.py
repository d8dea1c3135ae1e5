import pytest
import torch

from sft_lightning.networks.vision.autoencoders import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 29, 37), (3, 5, 4), (1, 1, 1)])
def test_decoders_output_images_of_the_input_shape_between_0_and_1(shape: tuple[int, int, int]) -> None:
    x = torch.rand(3, *shape)
    for encoder, decoder in (
        (MLPEncoder(shape), MLPDecoder(shape)),
        (ConvEncoder(shape), ConvDecoder(shape, ConvEncoder.num_features)),
    ):
        drawn = decoder(encoder(x))
        assert drawn.shape == x.shape
        assert drawn.min() >= 0
        assert drawn.max() <= 1


def test_mlp_autoencoder_has_the_layer_sizes_of_the_reference() -> None:
    shape = (1, 28, 28)
    sizes = [p.shape for net in (MLPEncoder(shape), MLPDecoder(shape)) for p in net.parameters() if p.ndim == 2]
    assert sizes == [(128, 784), (64, 128), (32, 64), (64, 32), (128, 64), (784, 128)]


def test_gradients_reach_every_parameter() -> None:
    shape = (3, 29, 37)
    encoder, decoder = ConvEncoder(shape), ConvDecoder(shape, 128)
    decoder(encoder(torch.rand(2, *shape))).square().mean().backward()
    assert all(p.grad is not None for net in (encoder, decoder) for p in net.parameters())
