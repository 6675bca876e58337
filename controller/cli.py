"""The program `grid`. Ctrl-C is heard before anything is loaded that takes time."""

from __future__ import annotations

from controller.interrupts import loading

with loading():
    from controller.commands.program import SECTIONS, main

__all__ = ["SECTIONS", "main"]

if __name__ == "__main__":
    main(prog_name="grid")
