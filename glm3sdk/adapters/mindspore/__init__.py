"""The MindSpore runtime: the only package that imports mindspore."""
