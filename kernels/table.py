"""Tables that a kernel writes from its own arguments: nothing is copied from the host, so it works in a CUDA graph."""

import triton
import triton.language as tl

FILLED_AT_ONCE = 24  # DINO's 10 students, 2 teachers and 10 gradients in one launch


@triton.jit(do_not_specialize=["first", *(f"v{i}" for i in range(FILLED_AT_ONCE))])
def fill_kernel(
    p_table, first,
    v0: tl.int64, v1: tl.int64, v2: tl.int64, v3: tl.int64, v4: tl.int64, v5: tl.int64, v6: tl.int64, v7: tl.int64,
    v8: tl.int64, v9: tl.int64, v10: tl.int64, v11: tl.int64, v12: tl.int64, v13: tl.int64,
    v14: tl.int64, v15: tl.int64, v16: tl.int64, v17: tl.int64, v18: tl.int64, v19: tl.int64,
    v20: tl.int64, v21: tl.int64, v22: tl.int64, v23: tl.int64,
):  # fmt: skip
    """table[first + i] = v_i. One type for all values: else every pattern of large and small ones would compile."""
    values = (
        v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15, v16, v17, v18, v19, v20, v21, v22, v23,
    )  # fmt: skip
    for i in tl.static_range(24):
        tl.store(p_table + first + i, values[i])
