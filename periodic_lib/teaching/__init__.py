"""What a class needs: exercises, their answers, plans, and the pack that holds them."""
