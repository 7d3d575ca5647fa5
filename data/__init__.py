"""The data sets to choose from by name, and the loader around each of them.

A new data set is its file and one import line here. It needs `classes`, `mean`, `std`, `rejected`
and `describe` as DogCat has them, and `__getitem__` may raise OSError for a sample it cannot read.
"""

from data.loader import Loader  # not relative: the relative ones are what --dataset may name

from .dataset import DogCat

__all__ = ["DogCat", "Loader"]
