"""The models to choose from by name. A new one is its file and one import line here."""

from models.build import body_weights, build, new

# What follows the dots is what --model takes.
from .resnet34 import ResNet34
from .squeezenet import SqueezeNet
