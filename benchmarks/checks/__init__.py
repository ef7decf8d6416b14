"""Every acceptance check of the project, as a table: what was run, what was wanted, what came of it.

    targets -> check -> running -> table
                 |
    planning, accuracy, search, validation, profiling, serving, experts -> catalogue

A check is one run (a command of Python's, or tests of the suite) and measures of what it printed, each with its target.
Nothing is measured here: the benchmarks, the commands and the tests are called as a user calls them, in processes of
their own, and their JSON is read. What is not at hand (a GPU, a framework's environment, published measurements, which
`--measurements` says where to find) makes a check "not run", never "met".
"""
