"""The operating system around a program: files, sockets, processes, threads, log."""
