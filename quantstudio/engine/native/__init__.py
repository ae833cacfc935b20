"""C++ of this program's own for one token on a CPU: built on the person's machine, called through ctypes."""
