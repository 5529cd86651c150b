"""Runs one of the commands for people, as installed, in a process that has it imported: warm.py."""

from __future__ import annotations

import runpy
import sys

import pedos_cli.client
import pedos_cli.device_attach
import pedos_cli.device_detach
import pedos_cli.device_list
import pedos_cli.qvm_device
import pedos_cli.qvm_ls
import pedos_cli.qvm_policy
import pedos_cli.qvm_start  # noqa: F401


def main() -> None:
    runpy.run_path(f"/usr/bin/{sys.argv[0]}", run_name="__main__")
