"""Only what pyproject.toml cannot say yet: the C extension behind cffi."""

from setuptools import setup

setup(cffi_modules=["native/pedos_vchan/_build.py:ffibuilder"])
