"""Create MLflow's store and the recipe's experiment, so that stages beside each other need not.

Two processes that create the tables of one SQLite file at once fail. Tracking is never a reason for a stage not to run,
so a failure here is a warning.
"""

from tasks.stage import Stage
from tasks.tracking import client_and_experiment
from trl.config import load_params

if __name__ == "__main__":
    params = load_params()
    try:
        client_and_experiment(Stage(params, params.recipe))
    except Exception as error:  # whatever the store, its driver or the network raises
        print(f"warning: MLflow's store cannot be opened ({error})")
