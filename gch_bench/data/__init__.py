"""Data sets, transforms, loaders and the protocol id.

options.py (configs, no torch) -> source.py (config -> DataSource) -> transforms.py, loaders.py (DataSource -> batches);
images.py says what a set of images is, digits.py and folders.py where they come from, protocol.py what a number depends on.
"""
