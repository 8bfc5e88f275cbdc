"""The commands without the command line, one file each."""
