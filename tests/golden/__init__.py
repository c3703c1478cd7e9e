"""Golden vectors made by running published code, and the runner that compares ours with them.

python -m tests.golden DIR [--method NAME]
"""
