"""Only what pyproject.toml cannot say yet: the C extensions, of which cffi makes one, and that the
widget's translations are compiled."""

import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

TRANSLATIONS = Path(__file__).with_name("tools") / "translations"

# One build for all versions, as cffi's.
LIMITED = [("Py_LIMITED_API", "0x030B0000")]
FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]

WIRE = Extension(
    "pedos_protocol._wire",
    [
        f"native/wire/{name}.c"
        for name in (
            *("connection", "events", "forms", "module", "packets"),
            *("read", "turn", "values", "write"),
        )
    ],
    depends=["native/wire/wire.h"],
    define_macros=LIMITED,
    extra_compile_args=FLAGS,
    py_limited_api=True,
)
HOST = [
    Extension(
        f"pedos_host._{name}",
        [f"native/host/{part}.c" for part in (name, *parts)],
        depends=["native/csrc/own_thread.h", *(f"native/host/{part}.h" for part in parts)],
        define_macros=LIMITED,
        extra_compile_args=FLAGS,
        py_limited_api=True,
    )
    for name, *parts in (("closing", "closer"), ("link",), ("open",), ("packets",), ("spawn",))
]


class BuildPy(build_py):
    """Compiles the translations first, because they are files of the package then."""

    def run(self) -> None:
        if shutil.which("msgfmt"):
            subprocess.run([TRANSLATIONS, "build"], check=True)
        else:
            self.warn("without gettext's msgfmt the widget speaks English alone")
        super().run()


setup(
    cffi_modules=["native/pedos_vchan/_build.py:ffibuilder"],
    ext_modules=[WIRE, *HOST],
    cmdclass={"build_py": BuildPy},
)
