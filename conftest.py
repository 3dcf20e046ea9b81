"""The suite is one pytest plugin, ``resnet8_eval.pytest_plugin``, installed with the package.

It is installed, not loaded from here, because pytest must know its options before it looks for the
directory that this file is in.
"""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without it: no verdict would be honest."""
    if not config.pluginmanager.hasplugin("resnet8_eval"):
        raise pytest.UsageError(
            "The resnet8_eval plugin is not loaded. Install the package (make test, or "
            "pip install -e .), and leave out -p no:resnet8_eval."
        )
