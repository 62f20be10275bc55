"""Workers to one another: who they are, whether they answer, what they decide together, what one has read for all.

What a message means for a checkpoint is for `commit` and `job`.
"""
