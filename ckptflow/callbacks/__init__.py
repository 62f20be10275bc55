"""Saving in `fit`, and going on in the middle of an epoch: what Keras's training loops are asked and told.

They work with a manager's `Session`; nothing here saves or restores by itself.
"""
