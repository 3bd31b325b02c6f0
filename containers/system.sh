#!/bin/sh
# What pip does not bring, on Debian: a compiler for torch.compile and DeepSpeed's operations, MPI, ssh and pdsh for several hosts.
set -eu
apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++ ninja-build openmpi-bin openssh-client pdsh
rm -rf /var/lib/apt/lists/*
