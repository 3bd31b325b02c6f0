#!/usr/bin/env bash
# torch 2.11.0, CPU. (Its default wheel brings CUDA libraries, some 5 GB for the time of the run.)
# Expected: checkpoint(f, x, use_reentrant=False) inside torch.compile keeps only the inputs of f and computes f again in
#   the backward, whatever f is made of, as it does in eager mode.
# Seen: with 2.11.0, what a custom autograd.Function inside f computes and saves is kept: forward and backward graph
#   are as large, and save as much, as without checkpoint. The same mathematics in plain operations is recomputed.
#   2.13.0 recomputes both ([4, 6, 4, 6] below).
# Why it matters: fused losses, norms and fp8 matrix products are autograd.Functions; "full" recomputation then frees
#   nothing, without a warning, and the memory of a long audio sequence is the uncheckpointed one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/count.py" <<'PY'
import sys

import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint


class SinOfProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        h = x @ w
        ctx.save_for_backward(x, w, h)
        return torch.sin(h)

    @staticmethod
    def backward(ctx, grad):
        x, w, h = ctx.saved_tensors
        d = grad * torch.cos(h)
        return d @ w.t(), x.t() @ d


def products(op, checkpointed):
    """Matrix products in the backward graph of two layers of op."""
    graphs = {}

    def keep(name):
        def compiler(module, _):
            graphs[name] = module.graph
            return make_boxed_func(module.forward)

        return compiler

    def layers(x, w1, w2):
        return op(op(x, w1), w2)

    def run(x, w1, w2):
        return checkpoint(layers, x, w1, w2, use_reentrant=False) if checkpointed else layers(x, w1, w2)

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=keep("fw"), bw_compiler=keep("bw"), partition_fn=min_cut_rematerialization_partition
    )
    x, w1, w2 = (torch.randn(n, 16, requires_grad=True) for n in (1024, 16, 16))
    torch.compile(run, backend=backend, fullgraph=True)(x, w1, w2).sum().backward()
    return sum(node.target == torch.ops.aten.mm.default for node in graphs["bw"].nodes)


ops = {"plain": lambda x, w: torch.sin(x @ w), "custom": SinOfProduct.apply}
seen = [products(op, checkpointed) for op in ops.values() for checkpointed in (False, True)]
print(torch.__version__, "products in the backward: plain, plain checkpointed, custom, custom checkpointed:", seen)
sys.exit(seen != [4, 6, 4, 4])
PY
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.11.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore "$work/count.py"
