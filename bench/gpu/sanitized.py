"""What compute-sanitizer watches: one small evaluation, Hessian product and gradient per precision."""

import torch

import lpn_fast as lf

if __name__ == "__main__":
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"cuda": (64, (2, 1, 19, 22)), "cpu": (3, (1, 1, 4, 3))}[device]
    model = lf.ConvLPN(1, hidden=sizes[0], strides=(1, 2), skip_kernel=3, beta=10.0).to(device)
    x = torch.randn(*sizes[1], device=device)
    with lf.use_backend("triton"):
        for precision in ("fp16", "bf16", "tf32", "fp32") if device == "cuda" else ("fp16",):
            model.precision = precision
            model(x).square().sum().backward()
            with torch.no_grad():
                model.hvp(x, x)
    print("done")
