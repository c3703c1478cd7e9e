"""What student and teacher read. One module per context, each with the same functions.

``student_messages(context, problem)``, ``teacher_messages(context, problem) -> {view: messages}`` and
``required_fields(context)`` take the module's frozen config, whose ``name`` is the key here.
"""

from types import ModuleType

from jopsd.contexts import solution

CONTEXTS: dict[str, ModuleType] = {"solution": solution}
ContextConfig = solution.SolutionContext
