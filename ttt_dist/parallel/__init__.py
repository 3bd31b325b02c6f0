"""How a model is split over processes: the mesh, Megatron-Core layers, Ulysses, pipeline stages, and weights put together again."""
