"""Short real runs of the best layouts of a plan, before the long one: what a prediction cannot tell apart, they settle.

- `rows`: a layout -> its row of a file of training measurements, the measured cells empty.
- `script`: the runs -> bash that makes them one after the other.
- `kit`: a plan -> every file of `verify/`.
- `logs`: what Megatron-LM and the shipped DeepSpeed program print -> step times, peak memory, out of memory.
- `collect`: the folder after the runs -> the rows with their measured cells filled.
"""
