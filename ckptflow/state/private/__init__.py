"""The private names of TensorFlow, Keras and tf_keras that ckptflow relies on, each with what is lacking in public.

A new release may change any of them: tests/state/test_private.py tries each and says what it is for. Nothing else
belongs here, and no other module uses such a name. `tensorflow` loads TensorFlow; the rest loads nothing by itself.
"""
