"""The models to choose from by name. A new one is its file and one import line here."""

from .resnet34 import ResNet34
from .squeezenet import SqueezeNet

__all__ = ["ResNet34", "SqueezeNet"]
