"""Whole-process timings of imgtool against virsh and plain qemu-img: `make bench`."""
