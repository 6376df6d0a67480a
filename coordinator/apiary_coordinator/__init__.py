"""The coordinator: rounds, aggregation, evaluation, publishing."""
