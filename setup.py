"""Build entry for setuptools; everything else stands in pyproject.toml."""

from setuptools import setup

setup()
