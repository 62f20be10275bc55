"""What stands between a foreign file and the user's process: limits, probes, allow-lists, private copies.

Nothing here reads a format for what is in it.
"""
