"""What a recipe's `hooks:` block can name, and the base class that a plugin's own hook has."""

from xtoolkit.hooks.base import Hook
from xtoolkit.hooks.by_loss import LossGradients
from xtoolkit.hooks.gradients import GradientAudit

__all__ = ["GradientAudit", "Hook", "LossGradients"]
