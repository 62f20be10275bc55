"""One process's part in a job: its session, its saves, and the state that it holds.

What the workers say to one another is in `peers`, what is decided about a root in `commit`.
"""
