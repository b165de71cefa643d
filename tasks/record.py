"""Record the selected recipe's results in MLflow from their files; what is recorded already is left alone."""

import sys

from tasks.stage import Stage, run_stage
from tasks.tracking import leaderboard, record_pipeline
from trl.common.errors import TrlError


def record(stage: Stage) -> None:
    """Complete the runs of all selected models and of the pipeline."""
    if not record_pipeline(stage):
        raise TrlError("MLflow is not complete, as the warning above says; mend its store and repeat the command")
    if page := leaderboard(stage):
        print(f"models by worst-case accuracy: {page}")


if __name__ == "__main__":
    sys.exit(run_stage(record, per_model=False, as_written=True))
