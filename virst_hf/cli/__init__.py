"""The command `virst`: one file for each sub-command, with `add_parser(subparsers)` and `run(args)`.

Nothing heavy is imported before `run`, so that `--help` is instant.
"""
