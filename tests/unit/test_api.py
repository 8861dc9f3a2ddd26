"""What `from imgtool import api` offers, whatever has been imported before."""

from __future__ import annotations

import pkgutil

from imgtool import api


def test_no_module_hides_a_function() -> None:
    """Importing a module binds its name in the package, over what the package offers itself."""
    modules = {module.name for module in pkgutil.iter_modules(api.__path__)}
    assert modules
    assert not modules & set(api.__all__)
