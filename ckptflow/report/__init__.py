"""A run as one page that needs nothing else: `ckptflow report`. What is shown is gathered first, and then drawn.

Nothing here writes: `cli` puts the page in its place.
"""
