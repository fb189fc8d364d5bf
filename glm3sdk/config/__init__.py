"""Run configurations: YAML to attrs values, every error at once."""
