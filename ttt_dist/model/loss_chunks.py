"""How many logits the loss holds at a time: apart from it, for those who count memory without torch."""

TILE_ELEMENTS, TILE_ROWS = 1 << 21, 1024  # logits of a tile on the CPU: 8 MB in fp32
CHUNK_ROWS = 4096  # on CUDA, of all classes
