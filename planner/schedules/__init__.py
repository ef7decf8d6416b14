"""Pipeline schedules: what each rank runs in which order, how long that takes, and what it keeps alive meanwhile.

`orders`, `simulate` and `bounds` are the schedules that targets run, vectorised, for the search. `passes` runs any
order of forward, input-gradient and weight-gradient passes; `published` and `limited` make such orders.
"""
