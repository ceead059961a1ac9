"""Sites as the tests of the whole path have them."""

from tests.path.conftest import demo, make_site

__all__ = ["demo", "make_site"]
