"""How fast a storage is, and which settings suit it: `ckptflow bench`.

What is compared with other libraries is in `benchmarks/` beside the package.
"""
