"""The data sets to choose from by name, and the loader around each of them.

A new data set is its file and one import line here. Pictures named like `rose.12.jpg` take three:
`class Flowers(DogCat): classes = ("rose", "tulip")`. Any other Dataset does if it is made by
(root, mode, image_size, crop_scale) and has `classes`, `num_classes`, `class_counts`, `labels`,
`mean`, `std`, `fingerprint` and `describe()` like DogCat; `__getitem__` gives (uint8 image
(3, image_size, image_size), label), or raises OSError for a sample that cannot be read. For
--on-device it has `whole()` and `augment` as well, for --cache=ram and disk `keep()`.
"""

# Not relative: the relative imports are what --dataset may name.
from data.loader import Loader, ResidentLoader

from .dataset import DogCat

__all__ = ["DogCat", "Loader", "ResidentLoader"]
