"""How fast a model runs here, beside what a user would run instead: `lpn-fast bench`, and parts of `python -m bench`.

counters    FLOP, bytes and special functions of every work
ceilings    what the device can do, measured: products, a copy, special functions
timing      interleaved rounds, medians and spreads
memory      peak memory of a call
power       watts, where the driver says them
works       the works of a model, each with its result and its truth in float64
suite       all works of some models over batches and sizes
results     CSV and JSON, two of them compared
roofline    the picture
surroundings  device, versions, commit
"""
