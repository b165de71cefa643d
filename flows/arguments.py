"""The command line of `python -m flows.full`, in its own module because Prefect takes seconds to import."""

import argparse
from typing import Any


def parse(arguments: list[str] | None = None) -> dict[str, Any]:
    """The flow's parameters from the command line; None if not given."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.full",
        description="Bring every stage up to date, record the results in MLflow and show the comparison.",
        epilog="The options hold for this run alone; params.yaml stays as it is. TRL_WORKERS: number of stages to run "
        "in parallel (default: one per GPU, or one per core up to 4). TRL_PROCESSES: number of processes that train "
        "one model together (default 1). TRL_DEVICE: cpu, cuda, cuda:1, ...",
    )
    parser.add_argument("--recipe", help="a recipe of params.yaml")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="methods of the recipe to compare")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds to train each method with")
    parser.add_argument(
        "--set", nargs="+", action="extend", dest="overrides", metavar="KEY=VALUE", help="any other key of params.yaml"
    )
    return vars(parser.parse_args(arguments))
