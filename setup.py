"""Only what pyproject.toml cannot say yet: the two C extensions, of which cffi makes one."""

from setuptools import Extension, setup

WIRE = Extension(
    "pedos_protocol._wire",
    [
        f"native/wire/{name}.c"
        for name in ("connection", "events", "module", "read", "turn", "values", "write")
    ],
    depends=["native/wire/wire.h"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],  # one build for all versions, as cffi's
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

setup(cffi_modules=["native/pedos_vchan/_build.py:ffibuilder"], ext_modules=[WIRE])
