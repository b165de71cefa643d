"""The command line of `python -m flows.full`, apart from it: Prefect takes seconds to import."""

import argparse
from typing import Any


def parse(arguments: list[str] | None = None) -> dict[str, Any]:
    """What the command line says of each of the flow's parameters; None where it says nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.full",
        description="Bring every stage up to date, record the results in MLflow and show the comparison.",
        epilog="What is given is written to params.yaml, as `dvc exp run -S` does. TRL_WORKERS: how many stages run "
        "at a time (default: one per GPU, or per core up to 4). TRL_PROCESSES: how many processes train one model "
        "together (default 1). TRL_DEVICE: cpu, cuda, cuda:1, ...",
    )
    parser.add_argument("--recipe", help="a recipe of params.yaml")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="the recipe's methods to compare")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="seeds of each method's models")
    parser.add_argument(
        "--set", nargs="+", action="extend", dest="overrides", metavar="KEY=VALUE", help="any other key of params.yaml"
    )
    return vars(parser.parse_args(arguments))
