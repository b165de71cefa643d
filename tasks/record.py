"""Record the selected recipe's results in MLflow from their files; what is recorded already is left alone."""

import sys

from tasks.stage import Stage, run_stage
from tasks.tracking import leaderboard, record_pipeline


def record(stage: Stage) -> None:
    """Complete the runs of all selected models and of the pipeline."""
    record_pipeline(stage)
    if page := leaderboard(stage):
        print(f"models by worst-case accuracy: {page}")


if __name__ == "__main__":
    sys.exit(run_stage(record, per_model=False))
