"""How many positions the loss takes at a time: apart from it, for those who count memory without torch."""

CHUNK_ELEMENTS = 1 << 23  # logits held at a time: 32 MB in fp32
CUDA_CHUNK_ELEMENTS = 1 << 28  # 1 GB: each chunk adds to the gradient of the whole head, and kernels want many rows


def chunk_rows(num_classes: int, on_cuda: bool) -> int:
    """Positions whose logits over `num_classes` are held at a time."""
    return max((CUDA_CHUNK_ELEMENTS if on_cuda else CHUNK_ELEMENTS) // num_classes, 1)
