"""Checks of the machine code of every Triton kernel, without a GPU; `scripts/kernel_budgets.py` is the command.

`launch_cases` are calls of the launchers; `compilation` compiles the kernels that they launch, for every architecture;
`machine_code` and `addresses` analyse the results; `budgets` compares them with the budget files.
"""
