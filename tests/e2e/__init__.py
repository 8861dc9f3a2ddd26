"""End to end: the command line as a process, a real libvirtd, real QEMU guests."""
