"""Imported by the fork server of `warm.context`: what training and the cases of `run_distributed` take, on the CPU."""

import gc
import os

os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

import torch._dynamo  # noqa: F401  # which every optimizer imports

import tests.distributed.cases  # noqa: F401
import ttt_dist.checkpoint.export
import ttt_dist.checkpoint.restore
import ttt_dist.model.hf.folder
import ttt_dist.parallel.parallelize
import ttt_dist.training.loop
import ttt_dist.training.plan  # noqa: F401
from ttt_dist.parallel.megatron_adapter import import_core_uncompiled

import_core_uncompiled()
gc.collect()
gc.freeze()  # what is imported is no garbage: forks neither look through it nor copy its pages
