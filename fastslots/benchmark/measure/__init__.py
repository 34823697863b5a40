"""How anything here is measured: time, memory, energy, launches."""
