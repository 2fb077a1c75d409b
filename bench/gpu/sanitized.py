"""What compute-sanitizer watches: one small evaluation, Hessian product and gradient per precision."""

import torch

import lpn_fast as lf

if __name__ == "__main__":
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = {"cuda": (64, (2, 1, 19, 22)), "cpu": (3, (1, 1, 4, 3))}[device]
    model = lf.ConvLPN(1, hidden=sizes[0], strides=(1, 2), skip_kernel=3, beta=10.0).to(device)
    frame = lf.FrameLPN(1, kernel=4, gates=((1, 1, 2 * sizes[0]),)).to(device)
    x = torch.randn(*sizes[1], device=device)
    with lf.use_backend("triton"):
        for precision in ("fp16", "bf16", "tf32", "fp32") if device == "cuda" else ("fp16",):
            for network, sigma in ((model, None), (frame, 1.0)) if device == "cuda" else ((model, None),):
                network.precision = precision
                network(x, sigma).square().sum().backward()
                with torch.no_grad():
                    network(x, sigma)
                    network.hvp(x, x, sigma)
    print("done")
