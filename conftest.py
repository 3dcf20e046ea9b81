"""The suite's options, fixtures and verdicts are in one plugin."""

pytest_plugins = ["resnet8_eval.pytest_plugin"]
