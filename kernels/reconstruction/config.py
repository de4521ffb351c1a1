"""Block sizes of the patch loss. Nothing here has been tuned on a GPU yet.

A patch of up to BLOCK numbers stays in registers; a larger one is read three times, from the second-level cache after
the first. A thread has eight numbers.
"""

BLOCK = 1024
NUMBERS_PER_THREAD = 8


def block_of(numbers: int) -> tuple[int, int]:
    """Numbers of a patch that are taken at once, a power of two, and the warps that do it."""
    block = min(BLOCK, 1 << (numbers - 1).bit_length()) if numbers > 1 else 1
    return block, max(1, block // (32 * NUMBERS_PER_THREAD))
