"""Recipes as functions, named for data set and method; `cifar10.RECIPES` has all."""
