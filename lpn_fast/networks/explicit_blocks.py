"""Groups of free filters in blocks: most see the few filters of one block, some all, and none more than its images.

    U = [ U_1         ]        U_b: groups of block b, [own, filters of b]
        [     ...     ]
        [         U_B ]
        [      J      ]        J: joint groups, [joint, filters]

Filters come in fours, a seed and its mirror images (explicit_filters.py), and so do the groups here: the r-th image of
a group sees the q-th image of a seed as the group itself sees image q xor r, both numbered 0 to 3 with a bit for each
axis. R is then the same for an image and its mirror images, and a gradient teaches four groups at once. What a filter
shares out, one column of U, is stored once for its block: (own + joint) / 4 logits for each filter.

Trained dense groups ended up nearly so: three in four had nine tenths of their weight on one or two filters.
"""

import torch
from torch import Tensor


def check_blocks(filters: int, groups: int, blocks: int, joint: int) -> None:
    """ValueError unless filters and groups go into blocks, in fours."""
    if blocks < 1 or filters < 4 or filters % (4 * blocks):
        raise ValueError(
            f"blocks must be positive and divide filters, {filters}, into multiples of 4, got {blocks} blocks"
        )
    if joint % 4 or not 0 <= joint <= groups:
        raise ValueError(f"joint must be a multiple of 4 from 0 to groups, {groups}, got {joint}")
    if (groups - joint) % (4 * blocks):
        raise ValueError(
            f"groups must be joint, {joint}, and a multiple of 4 for each of {blocks} blocks, got {groups}"
        )


def shared_out(logits: Tensor) -> Tensor:
    """Shares [N, 4 rows, n] of all images of the groups, of filters, from logits [N, rows, n] of one image each.

    A softmax over the groups and a slack whose logit is 0, taken once for the four filters of a seed: they have the
    same shares in another order, to the last bit, by which kernels know them.
    """
    by_seed = logits.unflatten(2, (-1, 4)).movedim(-1, 2)  # [N, rows, 4, seeds]
    flat = by_seed.flatten(1, 2)
    shares = torch.cat([flat, torch.zeros_like(flat[:, :1])], dim=1).softmax(1)[:, :-1].view_as(by_seed)
    image = torch.arange(4, device=logits.device)
    return shares[:, :, image[:, None] ^ image].movedim(3, 4).flatten(3).flatten(1, 2)


def of_all_groups(energies: Tensor, blocks: int, own: int) -> Tensor:
    """U [N, M, n] from [N, own + joint, n], what the groups of its block and the joint ones get of each filter."""
    inside = torch.eye(blocks, dtype=torch.bool, device=energies.device)
    inside = inside.repeat_interleave(energies.shape[2] // blocks, 1)[:, None]  # [blocks, 1, n]
    parts = torch.where(inside, energies[:, None, :own], energies.new_zeros(()))
    return torch.cat([parts.flatten(1, 2), energies[:, own:]], 1)
