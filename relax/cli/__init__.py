"""The strict command line of the scripts: every flag known, every value checked, before anything heavy is imported.

``run`` offers the parameters of a script's ``main`` and of the classes it forwards to (read from their source, never
imported) as flags. Not a configuration framework: a flag is a parameter, a configuration file is flags.
"""

from relax.cli.app import run
from relax.cli.config import dump_config
from relax.cli.flags import Forwarded

__all__ = ["Forwarded", "dump_config", "run"]
