"""Every process that a test starts reads this first: there is no torchao in it.

Where it can be found transformers imports it, half a second of every process that reads a model. The program itself
calls nothing of it, and this also proves that.
"""

import sys

sys.modules["torchao"] = None
