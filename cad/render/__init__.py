"""Volume rendering of triplanes (Sec. 3.2): a plain PyTorch reference, a fused twin, and images made with either."""
