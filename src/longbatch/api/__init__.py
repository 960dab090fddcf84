"""The functions of `import longbatch as lb`: the jobs and the trainer with plain arguments.

Paths are strings or path objects, specs are files or `BuildSpec` objects, times are ISO strings or datetimes. Nothing
is printed. Each function returns a dataclass that describes what was done. What a function needs is imported when it is
called, so that these modules can be imported without Polars, Spark or PyTorch.
"""
