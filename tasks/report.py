"""Stage report: compare the selected models in one page, its figures and its table."""

import sys

from tasks.stage import Stage, run_stage
from tasks.tracking import record_pipeline


def report(stage: Stage) -> None:
    """Write the page, print the table, and complete the record in MLflow."""
    from trl.report import load_results, text_table, write_report

    results = load_results(stage.paths.metrics, stage.params.methods, stage.params.seeds)
    page = write_report(results, stage.recipe_name, stage.recipe.model_dump(mode="json"), stage.paths.report)
    record_pipeline(stage)
    print(f"\n{text_table(results)}\n\nreport: {page}")


if __name__ == "__main__":
    sys.exit(run_stage(report, per_model=False, as_written=True))
