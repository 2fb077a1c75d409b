"""torch's settings of float32 products: ours last as long as a call on a GPU, and the user's stay what they were.

No GPU is needed: the settings exist without one, and of x only the device is read.
"""

from types import SimpleNamespace

import pytest
import torch

from lpn_fast.ops.backends.torch import products as products_of

ON_GPU = SimpleNamespace(device=torch.device("cuda", 0))
MATMUL, CONVOLUTION = torch.backends.cuda.matmul, torch.backends.cudnn.conv


@pytest.fixture(autouse=True)
def settings():
    """What other tests find is what they would have found."""
    before = MATMUL.fp32_precision, CONVOLUTION.fp32_precision
    legacy = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(legacy)
    MATMUL.fp32_precision, CONVOLUTION.fp32_precision = before


@pytest.mark.parametrize(
    "precision, products", [("fp32", "ieee"), ("tf32", "tf32"), ("fp16", "ieee"), ("bf16", "ieee")]
)
@pytest.mark.parametrize("users", ["ieee", "tf32"])
def test_tf32_is_where_it_was_named_and_nowhere_else(precision, products, users):
    MATMUL.fp32_precision = CONVOLUTION.fp32_precision = users  # from here on reading allow_tf32 may be an error
    with products_of(ON_GPU, precision):
        assert (MATMUL.fp32_precision, CONVOLUTION.fp32_precision) == (products, products)
        assert not MATMUL.allow_fp16_reduced_precision_reduction
    assert (MATMUL.fp32_precision, CONVOLUTION.fp32_precision) == (users, users)


@pytest.mark.parametrize("level", ["highest", "high", "medium"])
def test_what_the_older_setting_said_is_still_said_after_a_call(level):
    torch.set_float32_matmul_precision(level)
    with products_of(ON_GPU, "fp32"):
        pass
    assert torch.get_float32_matmul_precision() == level
    assert MATMUL.allow_tf32 == (level != "highest")  # an error where the two kinds of settings disagree


def test_an_error_inside_restores_them_too_and_tensors_of_the_cpu_change_nothing():
    MATMUL.fp32_precision = "tf32"
    with pytest.raises(KeyError), products_of(ON_GPU, "fp32"):
        raise KeyError
    assert MATMUL.fp32_precision == "tf32"
    with products_of(torch.zeros(1), "fp32"):
        assert MATMUL.fp32_precision == "tf32"
