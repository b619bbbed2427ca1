"""Reading the raw logs that were copied from the hosts."""
