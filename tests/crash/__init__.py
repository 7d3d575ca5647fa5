"""Kill a run anywhere and see that nothing is lost: python -m tests.crash --kills 200."""
