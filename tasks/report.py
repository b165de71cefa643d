"""Stage report: compare the selected models in a page with figures, and in a small table that Git keeps."""

import sys

from tasks.stage import Stage, run_stage


def report(stage: Stage) -> None:
    """Write the page and the table, and print the table."""
    from trl.report import load_results, text_table, write_csv, write_report

    params = stage.params
    results = load_results(stage.paths.metrics, params.compared, params.seeds, params.certify, params.ensembles)
    page = write_report(results, stage.recipe_name, stage.recipe.model_dump(mode="json"), stage.paths.report)
    write_csv(results, stage.paths.comparison)
    print(f"\n{text_table(results)}\n\nreport: {page}\nMLflow: `python -m tasks.record` adds these results")


if __name__ == "__main__":
    sys.exit(run_stage(report, per_model=False, as_written=True))
