"""Runs programs that a model wrote, kept away from this machine by several layers of the kernel."""

from jopsd.rewards.sandbox.box import Limits, Module, Outcome, Sandbox, SandboxError, describe
from jopsd.rewards.sandbox.layers import LAYERS, REQUIRED, unguarded

__all__ = ["LAYERS", "REQUIRED", "Limits", "Module", "Outcome", "Sandbox", "SandboxError", "describe", "unguarded"]
