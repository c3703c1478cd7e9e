"""The methods. Each is one file that reads like its paper's method section, and one line here."""

from typing import Annotated

from pydantic import Field

from jopsd.methods.method import Method
from jopsd.methods.opsd import Opsd
from jopsd.methods.pwopsd import PwOpsd
from jopsd.methods.sft import Sft

MethodConfig = Annotated[Opsd | PwOpsd | Sft, Field(discriminator="name")]

__all__ = ["Method", "MethodConfig", "Opsd", "PwOpsd", "Sft"]
