"""What a command does before it loads a model: import the large libraries, and keep their messages off the screen."""

import gc
import sys
from importlib import import_module

from rlhf.run.progress import silence_libraries


def prepare_libraries() -> None:
    """Import torch and transformers quickly, and silence them."""
    import_libraries()
    silence_libraries()


def import_libraries() -> None:
    """Import what every training command needs, with the garbage collector paused.

    These imports make half a million objects that live to the end of the process. The collector would go through all
    of them several times while they are made, which is a quarter of the start-up time, and again during training;
    `gc.freeze` exempts them from later collections.
    """
    if "transformers.modeling_utils" in sys.modules:
        return  # freezing now would exempt the caller's own objects too
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in ("torch", "accelerate", "transformers.modeling_utils"):
            import_module(name)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
