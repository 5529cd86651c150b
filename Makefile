# make demo | demo-widget | test | lint | bench: each makes its own set-up (Debian packages, .venv, C build) first.
.PHONY: help demo demo-widget pictures test lint bench fuzz interleave mutants soak build sound man deb clean
.PHONY: test-deb test-releases test-suite test-xen xen-shell

# The release of Debian in which the last five do what they do: the first target, or bookworm.
SUITE ?= trixie

help:
	@echo "make demo    attach a disk of one VM to another, on this machine, and see it work"
	@echo "make demo-widget  the tray widget on a virtual screen, at work; leaves pictures and says where"
	@echo "make pictures     the same pictures, into docs/pictures"
	@echo "make test    all tests that need no booted Xen"
	@echo "make lint    ruff and mypy"
	@echo "make bench   the benchmarks (JSON=FILE keeps the figures, SVG=DIR draws them,"
	@echo "             GATES='L1 T1' measures those alone, FULL=1 all that the gates count)"
	@echo "make build   the virtual environment and the C build alone"
	@echo "make sound   pedos-sound, into build/sound (needs libpulse-dev and libpipewire-0.3-dev)"
	@echo "make fuzz    the fuzzers of the shared page, frames, USB/IP, calls and the policy, for SECONDS=600 each"
	@echo "make interleave  every interleaving of the ring's two sides, at a larger size"
	@echo "make mutants take out each barrier, look and bound of the ring's C code: a test must fail"
	@echo "make soak    a hundred thousand channels with the real libxenvchan at the other end"
	@echo "make test-xen   Xen, dom0 and VMs booted in QEMU on this machine, and tests inside (as root);"
	@echo "                PART=base or PART=devices (USB and PCI) runs one half alone"
	@echo "make xen-shell  the same booted for you: dom0's shell"
	@echo "make man     the manual pages, into build/man"
	@echo "make deb     the Debian packages for this system, into build/deb"
	@echo "make test-deb    builds, installs, tries and purges them in bare systems (root, 2 minutes)"
	@echo "make test-releases  this release and the one before it together (root)"
	@echo "make test-suite  make demo and make test in a bare system (root, 6 minutes)"
	@echo "             All three, test-xen and xen-shell, do it with Debian 13; SUITE=bookworm with Debian 12"
	@echo "make clean   remove what these made"

build:
	@tools/setup run

sound:
	@$(MAKE) --no-print-directory -C native/sound

demo: build
	@demo/run $${IMAGE:+"$$IMAGE"}

# They drive the widget as a person does; neither needs a screen.
demo-widget:
	@tools/setup desktop
	@.venv/bin/python -m tests.widget.e2e.pictures build/widget/demo

pictures:
	@tools/setup desktop
	@.venv/bin/python -m tests.widget.e2e.pictures docs/pictures

# Three workers more than there are processors: two run tests of sound, which wait most of their time,
# and others wait as well now and then. A file is one worker's, and long ones come first
# (tests/schedule.py). What pytest has made of the modules of its plugins is kept for the next worker.
test:
	@tools/setup test
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n $$(($$(nproc) + 3)) --dist loadfile --no-loadscope-reorder $(ARGS)

lint:
	@tools/setup lint
	@.venv-lint/bin/ruff check .
	@.venv-lint/bin/ruff format --check .
	@.venv-lint/bin/mypy

bench: build
	@tools/setup bench
	@.venv/bin/python -m benchmarks $${JSON:+--json "$$JSON"} $${SVG:+--svg "$$SVG"} \
		$(if $(FULL),--full) $(GATES)

# The searches that `make test` does at a small size, for as long as there is time.
fuzz: build
	@.venv/bin/python -m tests.hostile.build $(or $(SECONDS),600)
	@.venv/bin/python -m tests.policy.fuzz_policy $(or $(SECONDS),600)

interleave: build
	@.venv/bin/python -m tests.interleave.search

mutants: build
	@.venv/bin/python -m tests.native.mutants

soak: build
	@tools/setup test
	@.venv/bin/python -m tests.interop.soak

# Both fetch Debian packages the first time, and keep them in build/xen-cache/SUITE. The project's own
# are built anew there when the sources have changed, and so is the image.
test-xen xen-shell: export PEDOS_XEN_SUITE = $(SUITE)

test-xen:
	@tools/setup xen
	@PEDOS_XEN=$(or $(PART),1) .venv/bin/python -m pytest tests/xen $(ARGS)

xen-shell:
	@tools/setup xen
	@.venv/bin/python -m tests.xen shell

man:
	@tools/setup lint
	@tools/make-man

deb:
	@debian/build-packages

test-deb:
	@tests/packaging/bare-system $(SUITE)

test-releases:
	@tests/packaging/two-releases $(SUITE)

test-suite:
	@tests/packaging/whole-suite $(SUITE)

clean:
	rm -rf .venv .venv-lint .venv-bench build *.egg-info native/pedos_vchan/*.so native/pedos_vchan/_native.c
