"""What to do about what is seen: pure, without clocks, threads or I/O."""
