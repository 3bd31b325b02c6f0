"""Open-vocabulary English by a neural voice: AR, TtT of the paper, TtT as here, on one GPU."""
