"""Discrete Fourier transforms that also take an empty batch, which the libraries behind torch.fft refuse."""

import torch
from torch import Tensor


def rfft2(
    x: Tensor,  # (..., h, w) real
    size: tuple[int, int],  # zero-padded to this
) -> Tensor:  # (..., H, W // 2 + 1) complex
    if x.numel():
        return torch.fft.rfft2(x, s=size)
    return x.new_zeros(*x.shape[:-2], size[0], size[1] // 2 + 1, dtype=x.dtype.to_complex())


def irfft2(
    spectrum: Tensor,  # (..., H, W // 2 + 1) complex
    size: tuple[int, int],
) -> Tensor:  # (..., H, W) real
    if spectrum.numel():
        return torch.fft.irfft2(spectrum, s=size)
    return spectrum.new_zeros(*spectrum.shape[:-2], *size, dtype=spectrum.dtype.to_real())


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
