"""Every process that a test starts reads this first: there is no torchao in it.

So the program is tried as people install it. Where torchao can be found transformers imports it, half a second of
every process that reads a model.
"""

import sys

sys.modules["torchao"] = None
