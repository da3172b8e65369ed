"""Volume rendering of triplanes (Sec. 3.2): the plain PyTorch renderer and the images made with it."""
