"""Parameters, work, memory and traffic of a training job before anything is built. Imports no torch.

`zoo.plan(name, ...)` is `zoo.planning.plan.plan`. (A module `zoo.plan` would take the function's place once imported.)
"""
