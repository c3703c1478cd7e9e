"""The methods. Each is one file that reads like its paper's method section, and one line here."""

from typing import Annotated

from pydantic import Field

from jopsd.methods.eopd import Eopd
from jopsd.methods.grpo import Grpo
from jopsd.methods.method import Method
from jopsd.methods.opsd import Opsd
from jopsd.methods.pwopsd import PwOpsd
from jopsd.methods.reopold import Reopold
from jopsd.methods.sft import Sft

MethodConfig = Annotated[Opsd | PwOpsd | Eopd | Reopold | Grpo | Sft, Field(discriminator="name")]

__all__ = ["Eopd", "Grpo", "Method", "MethodConfig", "Opsd", "PwOpsd", "Reopold", "Sft"]
