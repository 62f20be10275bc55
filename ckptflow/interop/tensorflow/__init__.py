"""TensorFlow's own formats: checkpoints of `tf.train.Checkpoint`, SavedModels, LiteRT.

Keras's files are for `keras`, also where TensorFlow writes them.
"""
