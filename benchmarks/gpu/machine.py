"""The machine itself: what is installed, and what the card does at best."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.clock import milliseconds
from benchmarks.gpu.setting import Figures, Measurement, Setting
from benchmarks.result_file import head

PACKAGES = ("torch", "triton", "transformers", "deepspeed", "megatron-core", "numpy")


def measurements(setting: Setting) -> Iterator[Measurement]:
    """What it is; bandwidth; products of the model's shapes."""
    yield "hardware", lambda: {"line": head("", "benchmarks.gpu")[2]}  # of a result file
    yield "versions", partial(versions, setting)
    yield "copy", partial(copy, setting)
    yield "products", partial(products, setting)
    yield "fp8 product", partial(fp8_product, setting)


def versions(setting: Setting) -> Figures:
    """Of packages, CUDA and driver."""
    found: Figures = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if setting.on_cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        found["card"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return found


def copy(setting: Setting) -> Figures:
    """Bytes read and written by a copy within the card's memory."""
    size = (4 << 30) if setting.on_cuda else (1 << 22)
    source, target = torch.empty(2, size, device=setting.device, dtype=torch.uint8)
    return {"tb_s": 2 * size / milliseconds(lambda: target.copy_(source), setting) / 1e9}


def products(setting: Setting) -> Figures:
    """TFLOP/s of a square product, and of each matrix of the model on two packs, forward."""
    config, size = setting.config, 8192 if setting.on_cuda else 64
    width, tokens = config.hidden_size // config.num_heads, 2 * setting.seq_len
    qkv = (config.num_heads + 2 * config.num_kv_heads) * width
    shapes = {
        "square": (size, size, size),
        "qkv": (tokens, config.hidden_size, qkv),
        "out": (tokens, config.num_heads * width, config.hidden_size),
        "gate_up": (tokens, config.hidden_size, 2 * config.ffn_hidden_size),
        "down": (tokens, config.ffn_hidden_size, config.hidden_size),
        "head": (
            tokens // 5,
            config.hidden_size,
            setting.layout.padded_vocab_size,
        ),  # a fifth of the tokens are targets
    }
    found: Figures = {}
    for name, (m, k, n) in shapes.items():
        a, b = (torch.randn(shape, device=setting.device, dtype=setting.dtype) for shape in ((m, k), (n, k)))
        found[f"{name}_tflops"] = 2 * m * k * n / milliseconds(partial(torch.matmul, a, b.T), setting) / 1e9
    return found


def fp8_product(setting: Setting) -> Figures:
    """TFLOP/s of gate and up in fp8 (e4m3), one scale a tensor, and of casting what goes into it."""
    setting.require_cuda("products in fp8")
    config, tokens = setting.config, 2 * setting.seq_len
    k, n = config.hidden_size, 2 * config.ffn_hidden_size
    a, b = (torch.randn(rows, k, device=setting.device, dtype=torch.bfloat16) for rows in (tokens, n))
    one = torch.ones((), device=setting.device)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    work = 2 * tokens * k * n / 1e9
    fast, slow = (
        milliseconds(
            partial(torch._scaled_mm, a8, b8.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=quickly), setting
        )
        for quickly in (True, False)
    )
    return {"gate_up_tflops": work / fast, "slow_sums_tflops": work / slow}
