"""Derivatives of the operators: autograd Functions that work eagerly, under torch.func and under torch.compile.

    evaluate  (psi, f):  backward  gx = H v + p f  and the gradients in P,   by one `vjp` (or `hvp`) operator
    hvp        H v:      linear and symmetric in v; its derivative in x and P is of third order in psi
    vjp       (gx, gP):  its derivatives likewise

Third order falls back to algebra/reference.py, in full precision. Dynamo refuses a Function that defines
`jvp`, so the one it meets exists twice, and the parent without `jvp` is in use while compiling.
"""

import torch
from torch import Tensor

from ..algebra import reference
from ..algebra.spec import Spec, decode
from . import backends, schema  # noqa: F401  (importing them registers the operators and what runs them)
from .tracing import is_plain, is_traced

_ops = torch.ops.lpn_fast


def evaluate(
    spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, with_value: bool, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """(psi (N,), f like x), differentiable in x and P; psi is empty without `with_value`."""
    differentiates = torch.is_grad_enabled() and (x.requires_grad or packed.requires_grad)
    if is_plain() or (is_traced() and not differentiates):
        return _ops.evaluate.default(x, packed, features, spec.encoded, precision, with_value, False)[:2]
    needs_tape = differentiates and not spec.is_dense
    function = _EvaluateCompiled if torch.compiler.is_compiling() else _Evaluate
    return function.apply(x, packed, features, spec.encoded, precision, with_value, needs_tape)[:2]


def hvp(spec: Spec, x: Tensor, packed: Tensor, features: Tensor | None, v: Tensor, precision: str = "fp32") -> Tensor:
    """grad^2 psi(x) v, differentiable in x, P and v; not inside torch.compile, where derivatives of it are refused."""
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        if any(t.requires_grad for t in (x, packed, v)):
            raise RuntimeError("derivatives of hvp are not available inside torch.compile; call it under no_grad there")
    return _hvp(x, packed, features, v, spec.encoded, precision, [])


def gradient_in_x(
    spec: Spec,
    x: Tensor,
    packed: Tensor,
    features: Tensor | None,
    p: Tensor | None,
    v: Tensor | None,
    f: Tensor,
    precision: str,
    tape: list[Tensor],
) -> Tensor:
    """H v + p f, the gradient of sum (p psi + <v, f>) in x alone; p or v may be None, and tape empty."""
    gx = None if v is None else _hvp(x, packed, features, v, spec.encoded, precision, tape)
    if p is not None:
        scaled = p.reshape(-1, *(1,) * (f.dim() - 1)) * f
        gx = scaled if gx is None else gx + scaled
    return gx


def vjp(
    spec: Spec,
    x: Tensor,
    packed: Tensor,
    features: Tensor | None,
    p: Tensor | None,
    v: Tensor | None,
    precision: str,
    tape: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """The gradient of sum (p psi + <v, f>) in x and P, itself differentiable."""
    return _vjp(x, packed, features, p, v, spec.encoded, precision, tape)


class _EvaluateCompiled(torch.autograd.Function):
    @staticmethod
    def forward(x, packed, features, encoded, precision, with_value, needs_tape):
        psi, f, tape = _ops.evaluate.default(x, packed, features, encoded, precision, with_value, needs_tape)
        return psi, f, *tape

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, packed, features, encoded, precision, with_value, _ = inputs
        _, f, *tape = output
        ctx.encoded, ctx.precision = encoded, precision
        ctx.with_value, ctx.tape_length = with_value, len(tape)
        ctx.save_for_backward(x, packed, features, f, *tape)
        ctx.save_for_forward(x, packed, features, f)
        ctx.mark_non_differentiable(*tape)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, p, v, *_):
        x, packed, features, f, *tape = ctx.saved_tensors
        p = p if ctx.with_value else None
        if p is None and v is None:
            return (None,) * 7
        if v is not None:
            v = v.contiguous()
        if ctx.needs_input_grad[1]:
            gx, gP = _vjp(x, packed, features, p, v, ctx.encoded, ctx.precision, tape)
            return gx, gP, None, None, None, None, None
        gx = gradient_in_x(decode(ctx.encoded), x, packed, features, p, v, f, ctx.precision, tape)
        return gx, None, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, x, packed, features, encoded, precision, with_value, needs_tape):
        def call(x, packed, features):
            return _EvaluateCompiled._pair(x, packed, features, encoded, precision, with_value)

        return _batched(call, info, in_dims[:3], (x, packed, features), per_sample=(True, False, True))

    @staticmethod
    def _pair(x, packed, features, encoded, precision, with_value):
        return evaluate(decode(encoded), x, packed, features, with_value, precision)


class _Evaluate(_EvaluateCompiled):
    @staticmethod
    def jvp(ctx, tx, tP, *_):
        x, packed, features, f = ctx.saved_tensors
        spec = decode(ctx.encoded)
        dpsi = df = None
        if tx is not None:
            df = hvp(spec, x, packed, features, tx.contiguous(), ctx.precision)
            dpsi = (f * tx).flatten(1).sum(1)
        if tP is not None:
            dpsi_P, df_P = _forward_derivative(
                lambda q: (reference.potential(spec, x, q, features), reference.prox(spec, x, q, features)),
                (packed,),
                (tP,),
            )
            df = df_P if df is None else df + df_P
            dpsi = dpsi_P if dpsi is None else dpsi + dpsi_P
        return dpsi if ctx.with_value else f.new_zeros(0), df, *(None,) * ctx.tape_length


class _Hvp(torch.autograd.Function):
    @staticmethod
    def forward(x, packed, features, v, encoded, precision, *tape):
        return _ops.hvp.default(x, packed, features, v, list(tape), encoded, precision)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, packed, features, v, encoded, precision, *_ = inputs
        ctx.encoded, ctx.precision = encoded, precision
        ctx.save_for_backward(x, packed, features, v)
        ctx.save_for_forward(x, packed, features, v)

    @staticmethod
    def backward(ctx, g):
        x, packed, features, v = ctx.saved_tensors
        spec = decode(ctx.encoded)
        gx = gP = gv = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            _, pullback = torch.func.vjp(lambda t, q: reference.hvp(spec, t, q, features, v), x, packed)
            gx, gP = pullback(g)
        if ctx.needs_input_grad[3]:
            gv = hvp(spec, x, packed, features, g.contiguous(), ctx.precision)
        return gx, gP, None, gv, *(None,) * (len(ctx.needs_input_grad) - 4)

    @staticmethod
    def vmap(info, in_dims, x, packed, features, v, encoded, precision, *tape):
        def call(x, packed, features, v):
            return hvp(decode(encoded), x, packed, features, v, precision)

        return _batched(call, info, in_dims[:4], (x, packed, features, v), per_sample=(True, False, True, True))

    @staticmethod
    def jvp(ctx, tx, tP, _, tv, *__):
        x, packed, features, v = ctx.saved_tensors
        spec = decode(ctx.encoded)
        tangents = [torch.zeros_like(t) if d is None else d for t, d in ((x, tx), (packed, tP), (v, tv))]
        return _forward_derivative(
            lambda t, q, w: reference.hvp(spec, t, q, features, w), (x, packed, v), tuple(tangents)
        )


class _Vjp(torch.autograd.Function):
    @staticmethod
    def forward(x, packed, features, p, v, encoded, precision, *tape):
        return _ops.vjp.default(x, packed, features, p, v, list(tape), encoded, precision)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, packed, features, p, v, encoded, *_ = inputs
        ctx.encoded = encoded  # derivatives of this one are the reference's
        ctx.save_for_backward(x, packed, features, p, v)
        ctx.save_for_forward(x, packed, features, p, v)

    @staticmethod
    def backward(ctx, gx, gP):
        x, packed, features, p, v = ctx.saved_tensors
        function, arguments = _reference_vjp(decode(ctx.encoded), x, packed, features, p, v)
        _, pullback = torch.func.vjp(function, *arguments)
        gradients = iter(pullback((gx, gP)))
        dx, dP = next(gradients), next(gradients)
        dp = None if p is None else next(gradients)
        dv = None if v is None else next(gradients)
        return dx, dP, None, dp, dv, *(None,) * (len(ctx.needs_input_grad) - 5)

    @staticmethod
    def vmap(info, in_dims, x, packed, features, p, v, encoded, precision, *tape):
        def call(x, packed, features, p, v):
            return _vjp(x, packed, features, p, v, encoded, precision, [])

        # gP sums over the batch, so samples of different vmap slices must not share one call
        return _looped(call, info, in_dims[:5], (x, packed, features, p, v))

    @staticmethod
    def jvp(ctx, tx, tP, _, tp, tv, *__):
        x, packed, features, p, v = ctx.saved_tensors
        function, arguments = _reference_vjp(decode(ctx.encoded), x, packed, features, p, v)
        given = [tx, tP] + ([tp] if p is not None else []) + ([tv] if v is not None else [])
        tangents = [torch.zeros_like(t) if d is None else d for t, d in zip(arguments, given, strict=True)]
        return _forward_derivative(function, tuple(arguments), tuple(tangents))


def _hvp(x, packed, features, v, encoded, precision, tape):
    # A compiled graph is differentiated once, so there the bare operator does.
    if torch.compiler.is_compiling():
        return _ops.hvp.default(x, packed, features, v, tape, encoded, precision)
    return _Hvp.apply(x, packed, features, v, encoded, precision, *tape)


def _vjp(x, packed, features, p, v, encoded, precision, tape):
    if torch.compiler.is_compiling():
        return _ops.vjp.default(x, packed, features, p, v, tape, encoded, precision)
    return _Vjp.apply(x, packed, features, p, v, encoded, precision, *tape)


def _reference_vjp(spec, x, packed, features, p, v):
    """The reference vjp as a function of the differentiable tensors that are there, and those tensors."""
    arguments = [x, packed] + [t for t in (p, v) if t is not None]

    def function(x, packed, *rest):
        rest = iter(rest)
        return reference.vjp(
            spec, x, packed, features, None if p is None else next(rest), None if v is None else next(rest)
        )

    return function, arguments


def _forward_derivative(function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]):
    """J t by differentiating the linear map u -> J^T u: forward mode inside forward mode is not supported."""
    out, pullback = torch.func.vjp(function, *primals)
    zero = torch.zeros_like(out) if isinstance(out, Tensor) else tuple(torch.zeros_like(o) for o in out)
    return torch.func.vjp(pullback, zero)[1](tangents)[0]


def _batched(call, info, dims, tensors, per_sample):
    """vmap by folding the mapped axis into the batch, when only per-sample tensors carry it."""
    if any(d is not None and not sample for d, sample in zip(dims, per_sample, strict=True)):
        return _looped(call, info, dims, tensors)
    size, folded = info.batch_size, []
    for t, d, sample in zip(tensors, dims, per_sample, strict=True):
        if t is not None and sample:
            t = t.unsqueeze(0).expand(size, *t.shape) if d is None else t.movedim(d, 0)
            t = t.flatten(0, 1)
        folded.append(t)
    out = call(*folded)
    single = isinstance(out, Tensor)
    outs = (out,) if single else out
    outs = tuple(o.reshape(size, -1, *o.shape[1:]) if o.numel() else o.new_empty(size, *o.shape) for o in outs)
    return (outs[0], 0) if single else (outs, (0,) * len(outs))


def _looped(call, info, dims, tensors):
    """vmap one slice at a time: for mapped parameters, and for gradients that sum over the batch."""
    rows = []
    for i in range(info.batch_size):
        out = call(*(t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)))
        rows.append((out,) if isinstance(out, Tensor) else tuple(out))
    outs = tuple(torch.stack(column) for column in zip(*rows, strict=True))
    return (outs[0], 0) if len(outs) == 1 else (outs, (0,) * len(outs))
