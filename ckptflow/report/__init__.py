"""A run as one page that needs nothing else: see `ckptflow report`."""
