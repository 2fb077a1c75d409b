"""Triton's interpreter: the kernels on CPU tensors, one block after the other, in numpy. For tests, never for work.

Set TRITON_INTERPRET=1 before Triton is imported. It cannot show races, TF32 rounding or wrong code, and it rounds to
bfloat16 wrongly. Triton 3.6 turns one-element arrays into loop bounds by int(), which numpy 2.4 refuses: `mend` is
the remedy.
"""

import os


def interpreted() -> bool:
    """Whether kernels run under the interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def mend() -> None:
    """Let interpreted scalars serve as loop bounds whatever numpy's version; harmless where that works already."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if getattr(patch, "mended", False):
        return

    def mended(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    mended.mended = True
    interpreter._patch_lang_tensor = mended
