"""A run as one self-contained page: `ckptflow report`. The data is gathered first, then drawn.

Nothing here writes: `cli` puts the page in its place.
"""
