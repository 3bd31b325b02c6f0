"""What `benchmarks/gpu.sh` runs on one GPU: phases in processes of their own, the most valuable first (benchmarks/README.md)."""
