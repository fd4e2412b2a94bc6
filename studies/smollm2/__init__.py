"""Inputs of the study of a real model, SmolLM2-135M."""
