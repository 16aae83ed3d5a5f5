"""What is used of W&B beyond its published interface. Checked in wandb 0.31.0. Imports it on demand."""

import os
from contextlib import suppress

__all__ = ["analytics_off", "has_credentials", "usual_mode"]


def analytics_off() -> None:
    """Turn off what W&B reports about itself, for this process.

    At exit it waits up to 15 seconds for a server that does not answer, and prints of each try. No setting turns it
    off.
    """
    with suppress(ImportError, AttributeError):
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


def has_credentials() -> bool:
    """Return whether W&B finds a key for its server: in variables, settings or netrc, whose places keep changing.

    Neither asks nor uses the network. Raises what W&B raises for a key in a wrong form.
    """
    import wandb
    from wandb.sdk.lib.wbauth import authenticate_session

    # It prints a line about a key that it finds.
    host = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    return authenticate_session(host=host, source="rowsft", prompt=False, update_session=False) is not None


def usual_mode() -> str:
    """Return the mode that W&B's own settings ask for; where they ask for none, online only with credentials."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode != "online" or os.environ.get("WANDB_MODE"):
        return settings.mode
    return "online" if has_credentials() else "offline"
