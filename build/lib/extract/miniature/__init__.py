"""The small pipelines that ship with the project: their data, training, weights and judge."""
