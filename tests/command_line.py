"""What tests that start the command line share: a tiny experiment's config file, an address, and a sudden end."""

import socket
import sys
import textwrap

CONFIG_HEAD = """
    from selfexplain_jax.config import base_config
    from selfexplain_jax.types import UserError

    def get_config(variant=""):
        config = base_config()
        config.data.image_size = 32
        config.data.options.train_size = 64
        config.data.num_threads = 1
        config.data.prefetch = 8
        config.model.widths = (8,)
        config.model.encoder_depth = 1
        config.train.warmup_steps = 1
        config.train.log_every = 1
        config.evaluation.audit = False
"""


def free_address():
    """HOST:PORT of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


KILLED = """
    import importlib, os, signal, sys
    from selfexplain_jax import main

    module, _, path = sys.argv.pop(1).partition(":")
    number, calls = int(sys.argv.pop(1)), []
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, name)

    def counted(*arguments, **named):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.{signal})
        return real(*arguments, **named)

    setattr(owner, name, counted)
    sys.exit(main.run())
"""


def ended_at(place, number=1, signal="SIGKILL"):
    """The command line but for its flags, in a process that a signal reaches where a function is called again.

    Args:
      place: the function, as MODULE:NAME or MODULE:CLASS.NAME.
      number: at which of its calls, from 1.
      signal: name of the signal.
    """
    return [sys.executable, "-c", textwrap.dedent(KILLED).replace("{signal}", signal), place, str(number)]
