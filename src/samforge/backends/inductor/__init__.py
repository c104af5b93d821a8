"""AOTInductor: parts compiled ahead of time into packages, run without compiling.

``backend`` compiles and runs them, ``record`` is what a package says of itself, ``memory`` what is
said where a GPU has too little. torch is imported when it is used.
"""
