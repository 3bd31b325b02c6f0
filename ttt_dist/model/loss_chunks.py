"""How many logits the loss holds at a time: apart from it, for those who count memory without torch."""

# Logits of a tile on the CPU, 1 MB in fp32: it stays in the cache, and in the allocator, which gives 8 MB back to the system
# after each use, to take them page by page again.
TILE_ELEMENTS, TILE_ROWS = 1 << 18, 1024
CHUNK_ROWS = 4096  # on CUDA, of all classes
