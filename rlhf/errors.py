"""The error that a user's input causes, and its report: `tabular.core.errors` under the name that this package uses."""

from tabular.core.errors import INTERRUPTED, UserError, report_user_errors

__all__ = ["INTERRUPTED", "UserError", "report_user_errors"]
