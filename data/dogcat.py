"""Kaggle's Dogs vs. Cats."""

from .pictures import Pictures


class DogCat(Pictures):
    """Files named `cat.0.jpg` … `dog.12499.jpg`, as Kaggle has them: label 0 is a cat, 1 a dog.

    Pictures in any other layout have the classes that their folders or their list give.
    """

    classes = ("cat", "dog")
