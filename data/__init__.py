"""The data sets that --dataset can name, and the loaders that make batches of them.

Pictures in folders, or in a list, need no code: Pictures in data/pictures.py says how they may lie.
Those named like `rose.12.jpg` need `class Flowers(Pictures): classes = ("rose", "tulip")`.
A class takes two places: a file of this folder, and one import line below. Any other data set is
a class like this:

    class Flowers(ImageDataset):
        classes = ("rose", "tulip")  # the names of the K classes

        def __init__(self, root, mode, image_size, crop_scale):
            super().__init__(mode, image_size, crop_scale)
            self.labels = ...  # mode "train", "val": the class of each sample, 0 … K - 1
            self.ids = ...  # mode "test", which has no labels: a number or name for each sample

        def read(self, index):
            return picture  # uint8 (3, H, W), of any size, for example by read_image(path)

ImageDataset decodes a picture once, keeps it (--cache), reduces it to what training needs, crops
and flips it at random in mode "train", and cuts out the middle in the others. Other augmentation:
give its `__init__` `transforms`, any function of a picture, for example of torchvision's v2.
An option of config.py that is a parameter of `__init__` arrives there, whatever its name is.
MultiLabelDataset is for pictures that show several classes at once: `labels` is (M, K), of 0 and 1.
For full control write `__getitem__(index)` instead of `read`: it returns a uint8 image
(3, image_size, image_size) and its label, in mode "test" its id. Random numbers come from torch,
random or numpy.random, which are seeded for each sample.

For a picture that cannot be read, raise UnreadableImage, as `read_image` does, or an OSError that
names a file: it is left out. Other errors end the run.

ImageDataset makes `num_classes`, `class_counts`, `__len__` and `describe()` of these, and sets
`mean` and `std` (of values in 0 … 1) to ImageNet's and `fingerprint` to "". A class may set others:
a fingerprint is a text that changes with the files, the same for train and val. --resume compares.
`path(index)`, the file of a sample, is optional: `check` looks at files, --cache=disk needs it.
"""

from data.build import build_loader, open_split
from data.image_dataset import ImageDataset, MultiLabelDataset
from data.loader import Loader
from data.read_image import UnreadableImage, read_image

# What follows the dots is what --dataset takes.
from .dogcat import DogCat
from .pictures import Pictures
