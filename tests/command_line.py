"""What tests that start the command line share: the beginning of a tiny experiment's config file, and an address."""

import socket

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
