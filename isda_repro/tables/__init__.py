"""A table's specification -> runs; finished runs -> tables. Imports no torch: status and tables must be instant."""
