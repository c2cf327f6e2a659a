"""What every Triton kernel compiles to, proved without a GPU; `scripts/kernel_budgets.py` is the command.

`launch_cases` are calls of the launchers; `compilation` compiles what they would start, for every architecture;
`machine_code` and `addresses` read the results; `budgets` compares them with what was agreed on.
"""
