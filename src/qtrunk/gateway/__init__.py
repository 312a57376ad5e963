"""Spending keys on traffic: protected files."""
