"""The miniature pipelines that ship with the project: data, training, weights and judge."""
