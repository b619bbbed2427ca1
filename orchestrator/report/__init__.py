"""What operators look at: the live view, the HTML report, metrics. From the run's files only."""
