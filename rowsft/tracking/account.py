"""Whether there is a W&B account to upload to."""

from rowsft.compat.wandb import has_credentials
from rowsft.errors import UserError, shortened


def has_account() -> bool:
    """Return whether W&B finds an API key, without a question and without the network.

    Raises UserError for a key in a wrong form.
    """
    try:
        return has_credentials()
    except Exception as error:
        raise UserError(f"W&B: its API key cannot be used ({shortened(error, 200)}); `wandb login` anew") from error
