import pytest
import torch
from torch.nn import Parameter

from sft_lightning.losses.regularizers import l2


def test_l2_is_half_the_squared_norm_and_its_gradient_the_parameter() -> None:
    parameters = [Parameter(torch.randn(3, 4)), Parameter(torch.randn(5)), Parameter(torch.zeros(2))]
    penalty = l2(parameters)
    assert float(penalty) == pytest.approx(0.5 * sum(float((p.detach() ** 2).sum()) for p in parameters))
    penalty.backward()
    for p in parameters:
        torch.testing.assert_close(p.grad, p.detach())


def test_frozen_parameters_are_left_out() -> None:
    frozen = Parameter(torch.full((9,), 7.0), requires_grad=False)
    assert float(l2([frozen, Parameter(torch.ones(4))])) == 2.0
