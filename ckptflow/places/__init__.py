"""Files and folders of other formats, wherever they lie: fetched and opened to read, staged to write.

A run's root with its keys is storage's; what is in a file is interop's.
"""
