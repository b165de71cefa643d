"""Record the selected recipe's results in MLflow from their files; what is recorded already is left alone."""

import sys

from tasks.stage import Stage, run_stage
from tasks.tracking import pages, record_pipeline
from trl.common.errors import TrlError


def record(stage: Stage) -> None:
    """Complete the runs of all selected models and of the pipeline."""
    parent = record_pipeline(stage)
    if parent is None:
        raise TrlError("MLflow is not complete, as the warning above says; fix its store and repeat the command")
    for shown, page in pages(stage, parent).items():
        print(f"{shown}: {page}")


if __name__ == "__main__":
    sys.exit(run_stage(record, per_model=False, as_written=True))
