"""The classification models of torchvision: --model=torchvision/NAME."""

from torch import Tensor

from .basic_module import BasicModule

# Models with a second classifier, which they use in training only. Here they go without it.
WITH_SECOND_HEAD = ("googlenet", "inception_v3")


class TorchvisionModel(BasicModule):
    """What a model of torchvision gets in addition: the methods of BasicModule."""

    def pretrained_state(self) -> dict[str, Tensor]:
        from torchvision.models import get_model

        return get_model(type(self).__name__, weights="DEFAULT").state_dict()


def make(name: str, num_classes: int, image_size: int) -> BasicModule:
    """Return a model with new weights, whose names are torchvision's: images to logits (N, K)."""
    from torchvision.models import get_model, get_model_weights  # here: it loads slowly

    options = {"num_classes": num_classes}
    if name in WITH_SECOND_HEAD:
        options |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    if name.startswith("vit_"):  # it learns a vector for each place of a picture
        options["image_size"] = image_size
    model = get_model(name, weights=None, **options)
    url = get_model_weights(name).DEFAULT.url
    model.__class__ = type(name, (type(model), TorchvisionModel), {"pretrained_url": url})
    return model
