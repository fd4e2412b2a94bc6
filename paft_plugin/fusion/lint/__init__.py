"""Finds what is wrong, or not as it seems, in a mergekit recipe, ours or a stranger's, before it is run.

- `linter.lint_recipe(recipe)` → findings; mergekit and torch are imported with it.
- `findings`: a finding, `lint.json`, text for the terminal, and what of it concerns a merge.
- Every other module holds checks, with the rules that they find standing above them.
"""
