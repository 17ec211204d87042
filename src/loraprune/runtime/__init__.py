"""The machine a run is on: devices, processes, memory, folders, signals, the hub. Imports no torch by itself."""
