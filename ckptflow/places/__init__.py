"""Files and folders of other formats, wherever they lie: fetched and opened to read, staged to write.

A run's root with its keys is for `storage`, what is in a file for `interop`.
"""
