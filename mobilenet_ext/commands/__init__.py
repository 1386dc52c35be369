"""The commands of `mobilenet-ext`: a module each, with HELP, add_arguments(parser), run(options).

`run` returns the exit status. What is slow to import is imported where it is used.
"""
