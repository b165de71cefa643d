"""The pipeline's stages: files in, files out, recorded in MLflow."""

from importlib.util import find_spec

LIBRARIES = ("dvc", "filelock", "mlflow", "prefect", "psutil", "ruamel")  # what the extra `pipeline` brings

if _missing := [name for name in LIBRARIES if find_spec(name) is None]:
    raise ImportError(
        f"the pipeline needs {', '.join(_missing)}: pip install 'tla-robustness[pipeline]'",
        name=__name__,  # with it `python -m` prints one line and no traceback
    )
