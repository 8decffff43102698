"""The command line: one file a command, each of which parses, calls a public function, and prints.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a command runs.
"""
