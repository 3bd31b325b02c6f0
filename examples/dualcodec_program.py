"""DualCodec as a program: its package wants a protobuf that ours cannot live with, so it runs in an environment of its own.

    python -m venv dual && dual/bin/pip install dualcodec soundfile
    python -m data_prep encode --codec "command:dual/bin/python examples/dualcodec_program.py /models/dualcodec /models/w2v-bert-2.0" ...

The folders are amphion/dualcodec and facebook/w2v-bert-2.0, downloaded beforehand. A frame is the code of its semantic codebook
(16,384 entries), then those of the acoustic ones, each behind the entries of those before it.
"""

import hashlib
import os
import sys
from pathlib import Path

from codec_program import serve

MODEL, CODEBOOKS = "12hz_v1", 8  # 12.5 frames a second; 1 to 8 codebooks
FILE = "dualcodec_12hz_16384_4096.safetensors"
HOP, SEMANTIC, ACOUSTIC = 1920, 16384, 4096


class DualCodec:
    """One utterance at a time: its semantic features are normalised over all of it."""

    def __init__(self, folder: str, features: str) -> None:
        import dualcodec
        import torch

        self.torch, device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        model = dualcodec.get_model(MODEL, folder)
        self.codec = dualcodec.Inference(model, folder, features, device=device, autocast=False)
        self.device = device
        self.about = {
            "name": f"dualcodec {MODEL}",
            "hash": hashlib.sha256(Path(folder, FILE).read_bytes() + f"{CODEBOOKS} {device}".encode()).hexdigest(),
            "sample_rate": 24000,
            "frame_rate": 24000 / HOP,
            "codes_per_frame": CODEBOOKS,
            "codebook_size": SEMANTIC + (CODEBOOKS - 1) * ACOUSTIC,
        }

    def encode(self, waves: list) -> list[list[int]]:
        """Codes of whole frames; a frame of silence is appended, because the features' last one is missing."""
        return [self._encode(self.torch.from_numpy(wave)) if len(wave) else [] for wave in waves]

    def _encode(self, wave: "object") -> list[int]:
        count = -(-len(wave) // HOP)
        padded = self.torch.nn.functional.pad(wave, (0, (count + 1) * HOP - len(wave)))
        semantic, acoustic = self.codec.encode(padded[None, None], n_quantizers=CODEBOOKS)
        rows = semantic[0] if acoustic is None else self.torch.cat([semantic[0], acoustic[0]])
        assert rows.shape[1] >= count, f"{rows.shape[1]} frames for {count}"
        starts = self.torch.tensor([0, *(SEMANTIC + k * ACOUSTIC for k in range(CODEBOOKS - 1))])
        return (rows[:, :count].cpu() + starts[:, None]).T.flatten().tolist()

    def decode(self, codes: list[int]) -> "object":
        """The speech of whole frames; a code in another codebook's place counts by its number within its own."""
        rows = self.torch.tensor(codes)[: len(codes) // CODEBOOKS * CODEBOOKS].view(-1, CODEBOOKS).T.to(self.device)
        semantic = rows[:1] % SEMANTIC
        acoustic = (rows[1:] - SEMANTIC).clamp(min=0) % ACOUSTIC
        return self.codec.decode_from_codes(semantic[None], acoustic[None]).flatten().cpu().numpy()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    serve(lambda: DualCodec(*sys.argv[1:3]))
