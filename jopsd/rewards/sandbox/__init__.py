"""Runs programs that a model wrote, kept away from this machine by several layers of the kernel."""

from jopsd.rewards.sandbox.box import Sandbox, describe
from jopsd.rewards.sandbox.layers import LAYERS, REQUIRED, unguarded
from jopsd.rewards.sandbox.programs import Limits, Module, Outcome, SandboxError

__all__ = ["LAYERS", "REQUIRED", "Limits", "Module", "Outcome", "Sandbox", "SandboxError", "describe", "unguarded"]
