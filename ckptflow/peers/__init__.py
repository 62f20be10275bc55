"""Workers to one another: who they are, whether they answer, and what they decide together.

What a message means for a checkpoint is for `commit` and `job`.
"""
