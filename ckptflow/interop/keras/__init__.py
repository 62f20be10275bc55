"""Keras's own files, of Keras 3 and tf_keras, read and written.

What a foreign one may do is for `untrusted`, a SavedModel for `tensorflow`.
"""
