"""Data sets, transforms and loaders.

sets.py holds the table of data sets and turns a DataConfig into a DataSource. images.py defines what a set of images is;
digits.py, folders.py and stored.py read such sets. transforms.py turns an image into a tensor, and loaders.py makes batches of
tensors.
"""
