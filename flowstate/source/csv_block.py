from __future__ import annotations
import numpy as np
class CsvBlock:
    def __init__(self, schema, header=None): pass
    def certain(self, records): return np.zeros(len(records), bool)
