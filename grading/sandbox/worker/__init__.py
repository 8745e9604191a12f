"""What runs where a submission runs: it knows no lab, no check and no expected value.

The judge uses the same wire from its end. Nothing here imports the rest of `grading`, so that this
folder can be copied to where only the submission and its runtime are visible.
"""
