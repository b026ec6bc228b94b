"""What the trainers and callbacks of ReLax share; imports neither of them."""

from relax.privacy import telemetry_off

__version__ = "0.1.0"

telemetry_off()  # here, because the libraries read their variables when they are first imported
