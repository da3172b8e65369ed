"""`cad doctor`: what of this machine, its software and the project's files works, and what to do about the rest.

Nothing here writes into the project; the renderer is compiled into the user's cache, as any run would do.
"""
