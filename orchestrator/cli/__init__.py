"""The command line: one module a command, thin. Modules import nothing heavy at the top."""
