"""Columns with names of files: found, identified, and decoded to pixels and samples"""
