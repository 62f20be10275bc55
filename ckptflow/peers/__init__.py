"""Workers to one another: who they are, whether they answer, and what they decide together."""
