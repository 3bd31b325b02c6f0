"""The phases in the order in which they run: what is last may find no time left."""

from dataclasses import dataclass

TOTAL_S = 555.0  # of all phases on a GPU; with start and end less than 570


@dataclass(frozen=True)
class Phase:
    """What is measured in one process."""

    measurements: str
    """module:function of this package, that yields what is to be measured in a `Setting`."""
    limit_s: float
    """After which it is killed. The sum is more than TOTAL_S: few phases need theirs."""
    about: str


PHASES = {
    "machine": Phase("machine:measurements", 30, "what is installed, and what the card does at best"),
    "tests": Phase("unit_tests:measurements", 60, "the unit tests that need a GPU"),
    "train": Phase("model_steps:measurements", 120, "steps of the model alone, with AdamW in bf16"),
    "decode": Phase("decoding:measurements", 85, "a spoken reply of 20 s"),
    "zero1": Phase("train_command:zero1", 120, "train.py with ZeRO-1, compiled: speed, waits of the host, memory"),
    "released": Phase("released:measurements", 50, "steps in the released code's way"),
    "parity": Phase("parity:measurements", 45, "loss and gradient norm of a small fp32 model against the CPU's"),
    "attention": Phase("attention:measurements", 60, "FlexAttention against fp32 attention under the dense mask"),
    "loss": Phase("loss:measurements", 30, "the head alone against cross-entropy over logits"),
    "zero3": Phase("train_command:others", 70, "train.py with ZeRO-3, and with ZeRO-1 eager"),
    "encode": Phase("encoding:measurements", 40, "codecs with random weights"),
    "memory": Phase("memory:measurements", 50, "train.py where the device has no memory for a step"),
}
