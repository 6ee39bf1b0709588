"""Block-sparse bidirectional attention over packed segments: what a mask drops stays in the sum as cell means."""
