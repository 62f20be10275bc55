"""TensorFlow's own formats: checkpoints of `tf.train.Checkpoint`, SavedModels, LiteRT."""
