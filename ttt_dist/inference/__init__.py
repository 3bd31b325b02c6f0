"""Decoding: autoregressive text and block-wise diffusion of speech, for batches of requests."""
