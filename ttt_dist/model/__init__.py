"""The model: Transformer, attention, loss, and Hugging Face's names for the weights. Pure math, no process group."""
