"""From the state's tensors to shards and back: who writes what, the pool of buffers, the pipelines, checksums.

When a checkpoint is whole, and whether it counts, is for `commit`.
"""
