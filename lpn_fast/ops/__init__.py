"""How an LPN is computed: operators, their derivatives, packing, and the backends behind them.

functions.evaluate / hvp      what networks call: autograd Functions around the operators
schema                        torch.library operators `lpn_fast::*`, opaque to compilers
registry                      which backend runs, and why the others do not
sweeps, maps, epilogues       the algebra as every ATen-based backend shares it
admission, device_check       whether kernels are right and faster on the device in front of us
plain_torch                   the same networks as one would write them: what kernels have to beat
explicit                      explicit priors, their kernels and solves
"""
