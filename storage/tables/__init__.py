"""Forms of data at rest: Parquet, arrays, models, exports."""
