"""What the device can do: a copy, and a large matrix product in every precision, on random data."""

import torch

from .session import Session, milliseconds, run_part

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


def measure(session: Session) -> None:
    """Rates in GB/s (bytes read and written) and TFLOP/s."""
    elements, side = (2**12, 64) if session.tiny else (2**30, 8192)
    source = torch.randn(elements, device=session.device)
    target = torch.empty_like(source)
    ms, *_ = milliseconds(lambda: target.copy_(source))
    session.add("copy", "torch", 8 * elements / ms / 1e6, "GB/s", metric="rate", shape=str(elements))
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    for precision, dtype in DTYPES.items():
        a, b = torch.randn(2, side, side, device=session.device).to(dtype)
        matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        a @ b
        ms, *_ = milliseconds(lambda a=a, b=b: a @ b, seconds=1.0)
        rate = 2 * side**3 / ms / 1e9
        session.add("matrix product", "torch", rate, "TFLOP/s", metric="rate", precision=precision, shape=f"{side}")
    matmul.fp32_precision = before


if __name__ == "__main__":
    raise SystemExit(run_part(__name__, __doc__, measure))
