"""What the trainers and callbacks of ReLax share; imports neither of them."""

__version__ = "0.1.0"
