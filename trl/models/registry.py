"""All architectures by name: to add one, write a file and add a line here."""

from trl.registry import Registry

MODELS = Registry(
    "model",
    {
        "deep_pursuit": "trl.models.deep_pursuit:deep_pursuit",
        "mlp": "trl.models.mlp:mlp",
        "mnist_cnn": "trl.models.mnist_cnn:mnist_cnn",
        "strided_cnn": "trl.models.strided_cnn:strided_cnn",
        "resnet18": "trl.models.resnet:resnet18",
        "preact_resnet18": "trl.models.preact_resnet:preact_resnet18",
        "preact_resnet50": "trl.models.preact_resnet:preact_resnet50",
        "wrn_*": "trl.models.wide_resnet:wide_resnet",
    },
)
