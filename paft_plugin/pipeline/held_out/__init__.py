"""Rows held out of the branches' data: which ones, as the trainings would have seen them, and the data sets without them."""
