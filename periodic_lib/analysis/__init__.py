"""What is read off results: periods, breaks, regimes, and what each chapter asks of them."""
