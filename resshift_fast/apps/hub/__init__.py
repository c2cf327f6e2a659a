"""The operators as a folder for Hugging Face's `kernels`: `folder` writes it, `relative` makes its imports relative.

`face` and `layers` become its `__init__.py` and `layers.py`; everything else in it is the package's own source.
"""
