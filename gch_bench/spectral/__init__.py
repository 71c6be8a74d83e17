"""Geometry of a network: spectra of its layer factors (GSA I), transport between them and static channels (GSA II).

Sources: Liu, Wang, Wang et al., Geometric and Spectral Alignment for Deep Neural Network I, arXiv 2605.02108, and II, arXiv
2605.02111. Where their abstracts fix no definition it is this project's (docs/geometry.md). Plain tensors in, named results
out; everything is computed in float64.
"""
