"""The command line `qan`: a file for each group of commands."""
