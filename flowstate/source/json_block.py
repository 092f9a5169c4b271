from __future__ import annotations
import numpy as np
class JsonBlock:
    def __init__(self, schema): pass
    def certain(self, records): return np.zeros(len(records), bool)
