"""Six verbs on the keys under one root: on a local disk, S3, Google Cloud Storage, and whatever else fsspec knows.

It knows nothing of checkpoints. Files and folders of other formats are for `places`.
"""
