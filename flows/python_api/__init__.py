"""The Python API for notebooks, which `import bloomery` offers"""
