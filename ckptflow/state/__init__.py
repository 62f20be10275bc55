"""What TensorFlow and both Keras hold: its names, capture, building, and putting values back.

It knows no storage and no other worker; bytes go in and out as `format.spec` says.
"""
