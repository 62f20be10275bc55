"""The commit protocol: claims, which checkpoints count, commit, choosing what to restore, retention, prune.

It knows no TensorFlow; what is in a shard is for `transfer`, what workers say to one another for `peers`.
"""
