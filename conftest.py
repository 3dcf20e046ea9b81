"""What holds for every test of this checkout.

The suite itself is a pytest plugin, ``resnet8_eval.pytest_plugin``. It is installed with the
package, not loaded from here, because pytest must know its options before it looks for the
directory that this file is in.
"""

import pytest

# For tests/unit; pytest takes such a line here alone if it is called in another folder.
pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without it: no verdict would be honest."""
    if not config.pluginmanager.hasplugin("resnet8_eval"):
        raise pytest.UsageError(
            "The resnet8_eval plugin is not loaded. Install the package (make test, or "
            "pip install -e .), and leave out -p no:resnet8_eval; where plugins are loaded by name "
            "alone (PYTEST_DISABLE_PLUGIN_AUTOLOAD), add -p resnet8_eval."
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make every warning in a test an error, but none that another plugin gives elsewhere."""
    if not config.pluginmanager.hasplugin("warnings"):  # -p no:warnings
        return
    for item in items:
        # In front, so that a test's own filters count for more.
        item.add_marker(pytest.mark.filterwarnings("error"), append=False)
