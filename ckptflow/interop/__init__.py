"""From a checkpoint to every other format, and back. The formats' table and the two ways are here.

What is Keras's or TensorFlow's own is below, and so is what guards against foreign files; where files lie is for
`places`.
"""
