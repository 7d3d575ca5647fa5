"""The data sets that --dataset can name, and the loaders that make batches of them.

A new data set takes two places: a class in a file of this folder, and one import line below.
Pictures named like `rose.12.jpg` need `class Flowers(DogCat): classes = ("rose", "tulip")`.
Any other data set is a class like this:

    class Flowers(ImageDataset):
        classes = ("rose", "tulip")  # the names of the K classes

        def __init__(self, root, mode, image_size, crop_scale):
            self.labels = ...  # mode "train", "val": the class of each sample, 0 … K - 1
            self.ids = ...  # mode "test", which has no labels: a number for each sample

        def __getitem__(self, index):
            return image, label  # uint8 (3, image_size, image_size), int; in mode "test", the id

Augment in mode "train" alone, by random numbers of torch, random or numpy.random; a crop shows at
least the share crop_scale of a picture. For a picture that cannot be read, raise UnreadableImage,
as `read_image` does, or an OSError that names a file: it is left out. Other errors end the run.

ImageDataset makes `num_classes`, `class_counts`, `__len__` and `describe()` of these, and sets
`mean` and `std` (of values in 0 … 1) to ImageNet's and `fingerprint` to "". A class may set others:
a fingerprint is a text that changes with the files, the same for train and val. --resume compares.

Optional methods, all of which DogCat has:
- `path(index)` returns the file of a sample. Without it, `check` does not look at files.
- `keep(where, folder)` keeps decoded pictures in memory (where="ram") or in the folder ("disk").
  Without it, --cache=ram and --cache=disk are refused.
- `whole()` returns the data set without augmentation, `augment(images, seed)` augments a batch
  (N, 3, H, W). Without them, or if `augment` is None, --on-device is refused.
"""

from data.build import build_loader, open_split
from data.image_dataset import ImageDataset, UnreadableImage, read_image
from data.loader import Loader, ResidentLoader

# What follows the dots is what --dataset takes.
from .dogcat import DogCat
