"""Floor 6: the command line. The only place that prints or exits."""
