"""What is in storage: names, manifests, shards, and the words in which a state is described. Pure: no I/O.

Whoever reads or writes it is in `storage`, `transfer` and `commit`.
"""
