"""Discrete Fourier transforms that also take an empty batch, which the libraries behind torch.fft refuse."""

from collections.abc import Callable

import torch
from torch import Tensor

# Up to this size MKL transforms a lone image by another algorithm than each of several, and the last bits differ.
# Together with its copy it is one of several, so that a result does not depend on what else was in the batch.
LARGEST_ALONE = 2**16  # pixels


def rfft2(
    x: Tensor,  # (..., h, w) real
    size: tuple[int, int],  # zero-padded to this
) -> Tensor:  # (..., H, W // 2 + 1) complex
    if x.numel():
        return _in_company(torch.fft.rfft2, x, size)
    return x.new_zeros(*x.shape[:-2], size[0], size[1] // 2 + 1, dtype=x.dtype.to_complex())


def irfft2(
    spectrum: Tensor,  # (..., H, W // 2 + 1) complex
    size: tuple[int, int],
) -> Tensor:  # (..., H, W) real
    if spectrum.numel():
        return _in_company(torch.fft.irfft2, spectrum, size)
    return spectrum.new_zeros(*spectrum.shape[:-2], *size, dtype=spectrum.dtype.to_real())


def _in_company(transform: Callable, x: Tensor, size: tuple[int, int]) -> Tensor:
    """The transform, the same to the bit for a batch of one on a CPU as within a larger one."""
    is_alone = x.numel() == x.shape[-1] * x.shape[-2] and size[0] * size[1] <= LARGEST_ALONE
    return transform(torch.stack((x, x)), s=size)[0] if is_alone and x.is_cpu else transform(x, s=size)


def unitary_fft2(x: Tensor) -> Tensor:  # (..., H, W) -> (..., H, W) complex
    return torch.fft.fft2(x, norm="ortho") if x.numel() else x.to(x.dtype.to_complex())


def unitary_ifft2(spectrum: Tensor) -> Tensor:  # (..., H, W) complex -> (..., H, W) complex
    return torch.fft.ifft2(spectrum, norm="ortho") if spectrum.numel() else spectrum


def filter_last_axis(
    x: Tensor,  # (..., n) real
    transfer: Tensor,  # (size // 2 + 1,), complex or real
    size: int,  # zero-padded to this
) -> Tensor:  # (..., size)
    if x.numel():
        return torch.fft.irfft(torch.fft.rfft(x, n=size) * transfer, n=size)
    return x.new_zeros(*x.shape[:-1], size)
