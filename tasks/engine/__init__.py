"""What every stage needs: stages and keys, building, workers, progress, the Prefect tasks."""
