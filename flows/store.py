"""Create MLflow's store and the recipe's experiment, so that stages beside each other need not.

Two processes that create the tables of one SQLite file at once fail. Tracking is never a reason for a stage not to run,
so a failure here is a warning.
"""

import sys

from tasks.stage import Stage, run_stage
from tasks.tracking import client_and_experiment


def create_store(stage: Stage) -> None:
    """Open the store, which creates what is missing."""
    try:
        client_and_experiment(stage)
    except Exception as error:  # whatever the store, its driver or the network raises
        print(f"warning: MLflow's store cannot be opened ({error})")


if __name__ == "__main__":
    sys.exit(run_stage(create_store, per_model=False, as_written=True))
