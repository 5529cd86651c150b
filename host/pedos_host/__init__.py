"""What a program needs of the machine that it runs on: files, sockets, processes, threads, log."""
