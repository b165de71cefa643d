"""All data sets by name: to add one, write a file and add a line here."""

from trl.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "digits": "trl.data.digits:digits",
        "mnist": "trl.data.mnist:mnist",
        "fashion_mnist": "trl.data.mnist:fashion_mnist",
        "cifar10": "trl.data.cifar10:cifar10",
        "image_folder": "trl.data.image_folder:image_folder",
        "tiny_imagenet": "trl.data.tiny_imagenet:tiny_imagenet",
    },
)
