"""S3, CosyVoice's speech tokenizer, by a package: one codebook, 25 or 50 codes a second.

(Du et al., "CosyVoice", arXiv 2407.05407, and "CosyVoice 2", 2412.10117.) The package is `s3tokenizer` (extra
`codecs`). A folder is a CosyVoice model's, or any that has its ONNX file. Speech is cut every 30 s, each piece by itself:
the package's own windows of 30 s, which overlap, drop codes where the last of them is shorter than 2 s. The way back is
CosyVoice's flow-matching model: an external program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from torch import Tensor, nn

from ttt_dist.audio.codecs.packaged import PackagedCodec, fill, find_weights, import_package
from ttt_dist.audio.codecs.published import REMEDY
from ttt_dist.util.errors import UserError

HEAD = 64  # channels of an attention head, as in all of Whisper's sizes
MEL_HOP = 160  # samples between frames of features


class S3Tokenizer(PackagedCodec):
    """The codec. Attention and convolutions are masked behind the end of each waveform: any lengths share a forward."""

    name = module = distribution = "s3tokenizer"
    weights = ("speech_tokenizer_v1.onnx", "speech_tokenizer_v2.onnx", "speech_tokenizer_v3.onnx")
    pads_from = 0
    piece_s = 30.0
    sample_rate = 16000
    num_codebooks = 1
    no_decoder = "s3tokenizer: its codes are made speech by CosyVoice's own program; give --decoder-command 'PROGRAM {codes} {wav}'"

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        return [find_weights(folder, cls.weights)]

    @classmethod
    def read(cls, package: Any, files: Sequence[Path]) -> nn.Module:
        """The network, with the sizes that its weights have."""
        (path,) = files
        onnx = import_package(cls.name, "onnx")
        generation = path.stem.removeprefix("speech_tokenizer_")
        convert = package.utils.onnx2torch_v3 if generation == "v3" else package.utils.onnx2torch
        try:
            graph = onnx.load(path, load_external_data=False).graph
            weights = convert(str(path))
        except (DecodeError, AssertionError, AttributeError) as error:  # not ONNX; nodes of another model
            raise UserError(f"{path}: is no tokenizer of CosyVoice ({error!r}); {REMEDY}") from error
        convolution = next(
            (node for node in graph.node if node.op_type == "Conv"), None
        )  # of 1 or 2 steps: 50 or 25 Hz
        stride = next((one.ints[0] for one in getattr(convolution, "attribute", ()) if one.name == "strides"), 1)
        model = cls.build(package, {"generation": generation, "stride": stride, **_sizes(weights)})
        # Biases of norms that are zero are no part of v3's file.
        fill(model, weights, cls.name, path, may_lack="_ln.bias" if generation == "v3" else "nothing")
        return model

    @classmethod
    def build(cls, package: Any, config: Mapping[str, Any]) -> nn.Module:
        """`generation` v1, v2 or v3, `stride` of the first convolution, and the sizes."""
        sizes = {key: value for key, value in config.items() if key.startswith("n_")}
        if config["generation"] == "v3":
            return package.S3TokenizerV3("v3", package.model_v3.ModelConfigV3(**sizes))
        if config["generation"] == "v2":
            return package.S3TokenizerV2("v2", package.model_v2.ModelConfig(**sizes))
        name = "speech_tokenizer_v1" + ("_25hz" if config["stride"] == 2 else "")
        return package.S3Tokenizer(name, package.model.ModelConfig(**sizes))

    def measure(self, codebooks: int | None) -> None:
        self.require_all(codebooks, 1)
        self.size = self.model.quantizer.codebook_size
        self.mels = self.model.config.n_mels
        self.frame_rate = self.sample_rate / (MEL_HOP * 2 * self.model.encoder.stride)

    def frames(self, waves: Sequence[Tensor]) -> Tensor:
        import s3tokenizer

        features = [s3tokenizer.log_mel_spectrogram(wave.to(self.device), self.mels) for wave in waves]
        mels, lengths = s3tokenizer.padding(features)
        return self.model.quantize(mels.to(self.device), lengths.to(self.device))[0][:, None]


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """The package's settings that decide shapes, of the weights: the files do not name them."""
    state, mels, _ = weights["encoder.conv1.weight"].shape
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.blocks.")}
    sizes = {"n_mels": mels, "n_audio_state": state, "n_audio_head": state // HEAD, "n_audio_layer": len(layers)}
    if "quantizer._codebook.embed" in weights:  # v1; the others' quantiser is one of 3^8 numbers, without a table
        sizes["n_codebook_size"] = len(weights["quantizer._codebook.embed"])
        sizes["n_audio_ctx"] = len(weights["encoder.positional_embedding"])
    return sizes
