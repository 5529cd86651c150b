"""Only what pyproject.toml cannot say yet: the C extensions, of which cffi makes one."""

from setuptools import Extension, setup

# One build for all versions, as cffi's.
LIMITED = [("Py_LIMITED_API", "0x030B0000")]
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]

WIRE = Extension(
    "pedos_protocol._wire",
    [
        f"native/wire/{name}.c"
        for name in ("connection", "events", "module", "read", "turn", "values", "write")
    ],
    depends=["native/wire/wire.h"],
    define_macros=LIMITED,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)
OPEN = Extension(
    "pedos_host._open",
    ["native/host/open.c"],
    define_macros=LIMITED,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)

setup(cffi_modules=["native/pedos_vchan/_build.py:ffibuilder"], ext_modules=[WIRE, OPEN])
